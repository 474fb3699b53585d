"""The HTTP side of the Open Inference Protocol, version 2, as an ASGI application."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from stream_learner.config import ServeSettings
from stream_learner.errors import StreamLearnerError
from stream_learner.follow.follower import Follower
from stream_learner.follow.releases import Release
from stream_learner.follow.serving import protocol, rest
from stream_learner.follow.serving.batching import Batcher, OverloadedError
from stream_learner.follow.serving.metrics import ServingMetrics
from stream_learner.follow.serving.protocol import RequestError
from stream_learner.follow.serving.publishing import Publisher
from stream_learner.program import NAME, VERSION

log = structlog.get_logger()

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers = dict[bytes, bytes]

JSON: Headers = {b"content-type": b"application/json"}
# The rest of the request is not read, so the connection cannot have another one.
CLOSE: Headers = {b"connection": b"close"}
HEADER_LENGTH = rest.HEADER_LENGTH.encode()
OF_MODEL = re.compile("/v2/models/(?P<model>[^/]+)(/versions/(?P<version>[^/]+))?(?P<page>/ready|/infer|)")


class HttpError(Exception):
    """A request that is refused: the status, the message for the client, and headers of the response."""

    def __init__(self, status: int, message: str, headers: Headers | None = None):
        super().__init__(message)
        self.status = status
        self.headers = headers or {}


class Response(NamedTuple):
    status: int
    body: bytes
    headers: Headers
    images: int = 0
    """Number of images that were predicted."""


class Application:
    """Answers requests for the releases that a follower has in use. The model's name is the run's id."""

    def __init__(
        self,
        model: str,
        follower: Follower,
        settings: ServeSettings,
        publisher: Publisher | None = None,
    ):
        self.model = model
        self._follower = follower
        self.settings = settings
        self._registry = CollectorRegistry()
        self.metrics = ServingMetrics(self._registry, follower)
        self._publisher = publisher
        for counter in publisher.counters if publisher else ():
            self._registry.register(counter)
        self._batcher = Batcher(settings.max_waiting_images)
        self._held_bytes = 0
        self._pages = {
            "/v2": self._server,
            "/v2/health/live": self._live,
            "/v2/health/ready": self._ready,
            "/metrics": self._scrape,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request (ASGI)."""
        began = time.perf_counter()
        response = await self._response(scope, receive)
        if scope["path"].endswith("/infer"):
            self.metrics.answered(response.status, response.images, time.perf_counter() - began)
        headers = response.headers | {b"content-length": b"%d" % len(response.body)}
        await send({"type": "http.response.start", "status": response.status, "headers": headers.items()})
        await send({"type": "http.response.body", "body": response.body})

    async def _response(self, scope: Scope, receive: Receive) -> Response:
        """Return the response to a request. Errors are responses that have a status and a reason."""
        body = b""
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                body = await self._body(receive)
                return await self._page(scope, body)
        except Exception as error:  # noqa: BLE001
            refused = self.refusal(error)
            return _json({"error": str(refused)}, refused.status, refused.headers)
        finally:
            self._held_bytes -= len(body)

    def refusal(self, error: Exception) -> HttpError:
        """Return the refusal of a request that an error ended."""
        match error:
            case HttpError():
                return error
            case RequestError():
                return HttpError(400, str(error))
            case OverloadedError():
                return HttpError(503, "too many images wait; try again later")
            case TimeoutError():
                return HttpError(503, f"no answer within {self.settings.timeout_s:g} s; try again later", CLOSE)
            case StreamLearnerError():
                return HttpError(503, str(error))
        log.error("a request failed in an unexpected way", exc_info=error)
        return HttpError(500, "an unexpected error; see the log of the server")

    async def _body(self, receive: Receive) -> bytes:
        """Read the body of a request. The caller subtracts its length from `_held_bytes` at the end."""
        parts: list[bytes] = []
        size = 0
        try:
            while True:
                message = await receive()
                part = message.get("body", b"")
                size += len(part)
                self._held_bytes += len(part)
                if size > self.settings.max_body_bytes:
                    raise HttpError(413, f"the body is longer than {self.settings.max_body_bytes} bytes", CLOSE)
                if self._held_bytes > self.settings.max_held_bytes:
                    raise HttpError(503, "the bodies of all requests take too much memory; try again later", CLOSE)
                parts.append(part)
                if message["type"] == "http.disconnect":
                    raise HttpError(400, "the client left")
                if not message["more_body"]:
                    return b"".join(parts)
        except BaseException:
            self._held_bytes -= size
            raise

    async def _page(self, scope: Scope, body: bytes) -> Response:
        path, method = scope["path"], scope["method"]
        of_model = OF_MODEL.fullmatch(path)
        if of_model and of_model["page"] == "/infer":
            if method != "POST":
                raise HttpError(405, f"{method} is not allowed here, only POST", {b"allow": b"POST"})
            return await self._infer(self.release(of_model["model"], of_model["version"]), dict(scope["headers"]), body)
        if not of_model and path not in self._pages:
            raise HttpError(404, f"there is no page {path!r}")
        if method not in ("GET", "HEAD"):
            raise HttpError(405, f"{method} is not allowed here, only GET", {b"allow": b"GET, HEAD"})
        if not of_model:
            return self._pages[path](scope)
        release = self.release(of_model["model"], of_model["version"])
        if of_model["page"] == "/ready":
            return _json({"name": self.model, "ready": True})
        labels = [str(label) for label in release.labels]  # in the order of the probabilities
        return _json(self.metadata(release) | {"parameters": {"epoch": release.order[0], "labels": labels}})

    def _server(self, _: Scope) -> Response:
        return _json(self.server())

    def _live(self, _: Scope) -> Response:
        return _json({"live": True})

    def _ready(self, _: Scope) -> Response:
        self._follower.latest()
        return _json({"ready": True})

    def _scrape(self, scope: Scope) -> Response:
        accepted = dict(scope["headers"]).get(b"accept", b"").decode("latin-1")
        try:
            encoder, content_type = choose_encoder(accepted)
        except (TypeError, ValueError):  # a version that is not a number
            encoder, content_type = choose_encoder("")
        return Response(200, encoder(self._registry), {b"content-type": content_type.encode()})

    async def _infer(self, release: Release, headers: Headers, body: bytes) -> Response:
        request = rest.decode(body, headers.get(HEADER_LENGTH))
        outputs = await self.predict(release, request.inputs, request.id)
        content, length = rest.encode(request, self.model, release, outputs)
        if length is None:
            return Response(200, content, JSON, len(outputs["labels"]))
        binary = {b"content-type": b"application/octet-stream", HEADER_LENGTH: b"%d" % length}
        return Response(200, content, binary, len(outputs["labels"]))

    def server(self) -> dict[str, Any]:
        """Return the server's metadata."""
        return {"name": NAME, "version": VERSION, "extensions": protocol.EXTENSIONS}

    def ready(self) -> bool:
        """Return whether a release is in use."""
        return self._follower.following.release is not None

    def metadata(self, release: Release) -> dict[str, Any]:
        """Return the model's metadata."""
        return protocol.metadata(self.model, self._follower.kept, release)

    async def predict(
        self, release: Release, inputs: Sequence[protocol.Given], request_id: str | None
    ) -> protocol.Outputs:
        """Return all outputs for the inputs of a request. Raises RequestError and the errors of `Batcher.compute`."""
        images = protocol.images(inputs, release.image_shape, self.settings.max_images)
        ids = protocol.ids(inputs, len(images), request_id)
        answer = await self._batcher.compute(release, images)
        if self._publisher:
            await self._publisher.offer(release, ids, answer.probabilities)
        return protocol.outputs(release, answer.logits, answer.probabilities)

    def release(self, model: str, version: str | None) -> Release:
        """Return the release that a request names: the one in use, or a version. Raises HttpError, NoReleaseError."""
        if model != self.model:
            raise HttpError(404, f"there is no model {model!r}; the model is {self.model!r}")
        if version is None:
            return self._follower.latest()
        for release in reversed(self._follower.kept):
            if protocol.version(release) == version:
                return release
        raise HttpError(404, f"version {version!r} of {self.model!r} is not loaded")


def _json(document: object, status: int = 200, headers: Headers | None = None) -> Response:
    return Response(status, msgspec.json.encode(document), JSON | (headers or {}))
