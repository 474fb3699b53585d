"""The gRPC side of the Open Inference Protocol, version 2. It answers as the HTTP side does."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from stream_learner.errors import UsageError
from stream_learner.follow.serving import protocol
from stream_learner.follow.serving.app import Application
from stream_learner.follow.serving.messages import MESSAGES, SERVICE, parse
from stream_learner.follow.serving.protocol import RequestError

INFER = "ModelInfer"
MAX_NAME = 256
MAX_DIMENSIONS = 8
IDLE_MS = 300_000
"""Time after which a connection without a request is closed."""
MAX_REASON = 500
"""Characters of a refusal. gRPC sends it in a header, and clients bound the headers."""
IDENTITY = 1
"""The compressions that are allowed, as bits. gRPC does not bound the size of a message after decompression."""
CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
}
"""Code of gRPC for a status of HTTP."""

Response = dict[str, Any]


class GrpcServer:
    """A gRPC server in the event loop of the HTTP server, with the same application."""

    def __init__(self, application: Application, port: int):
        """Listen on the address of the HTTP server. Port 0 takes a free one.

        Raises UsageError when the address cannot be used.
        """
        self._application = application
        settings = application.settings
        options = {
            "grpc.max_receive_message_length": settings.max_body_bytes,
            "grpc.max_concurrent_streams": settings.max_connections,
            "grpc.max_connection_idle_ms": IDLE_MS,
            "grpc.compression_enabled_algorithms_bitset": IDENTITY,
            "grpc.so_reuseport": 0,  # a second server on the same port is an error
        }
        self._server = grpc.aio.server(options=list(options.items()), maximum_concurrent_rpcs=settings.max_connections)
        methods = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._metadata,
            INFER: self._infer,
        }
        handlers = {name: self._handler(name, method) for name, method in methods.items()}
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        try:
            self.port = self._server.add_insecure_port(f"{host}:{port}")
        except RuntimeError:
            raise UsageError(f"cannot listen on {host}:{port}; change serve.host or serve.grpc_port") from None

    async def start(self) -> None:
        """Accept requests."""
        await self._server.start()

    async def stop(self) -> None:
        """Accept no more requests, and wait for those that have begun."""
        await self._server.stop(self._application.settings.timeout_s)

    def _handler(self, name: str, method: Callable[[Any], Awaitable[Response]]) -> grpc.RpcMethodHandler:
        """Return the handler of an RPC.

        It receives the request as a stream of one message, because gRPC would wait without a limit for the message. It
        also parses the request, to refuse bytes that are not a message.
        """
        application, response_class = self._application, MESSAGES[f"{name}Response"]

        async def answer(_: object, context: grpc.aio.ServicerContext) -> bytes:
            began, response, refused = time.perf_counter(), {}, None
            try:
                async with asyncio.timeout(application.settings.timeout_s):
                    body: Any = await context.read()
                    response = await method(_parsed(f"{name}Request", body))
            except Exception as error:  # noqa: BLE001
                refused = application.refusal(error)
            if name == INFER:
                images = response["outputs"][0]["shape"][0] if response else 0
                application.metrics.answered(refused.status if refused else 200, images, time.perf_counter() - began)
            if refused:
                await context.abort(CODES[refused.status], str(refused)[:MAX_REASON])
            return response_class(**response).SerializeToString()

        return grpc.stream_unary_rpc_method_handler(answer)

    async def _live(self, _: Any) -> Response:
        return {"live": True}

    async def _ready(self, _: Any) -> Response:
        return {"ready": self._application.ready()}

    async def _server_metadata(self, _: Any) -> Response:
        return self._application.server()

    async def _model_ready(self, request: Any) -> Response:
        self._application.release(request.name, request.version or None)
        return {"ready": True}

    async def _metadata(self, request: Any) -> Response:
        release = self._application.release(request.name, request.version or None)
        return self._application.metadata(release)

    async def _infer(self, request: Any) -> Response:
        release = self._application.release(request.model_name, request.model_version or None)
        if len(request.id) > MAX_NAME:
            raise RequestError(f"the id is longer than {MAX_NAME} characters")
        asked = [output.name for output in request.outputs] or list(protocol.DATATYPES)
        protocol.check_outputs(asked)
        values = await self._application.predict(release, given(request), request.id)
        return {
            "model_name": self._application.model,
            "model_version": protocol.version(release),
            "id": request.id,
            "parameters": [{"key": "epoch", "value": {"int64_param": release.manifest.epoch}}],
            "outputs": [
                {"name": name, "datatype": protocol.DATATYPES[name], "shape": protocol.shape(values[name])}
                for name in asked
            ],
            "raw_output_contents": [protocol.raw(values[name]) for name in asked],
        }


def _parsed(name: str, body: Any) -> Any:
    if not isinstance(body, bytes):
        raise RequestError(f"the request has no {name}")
    try:
        return parse(name, body)
    except ValueError as error:
        raise RequestError(str(error)) from None


def given(request: Any) -> list[protocol.Given]:
    """Return the inputs of a ModelInferRequest. Raises RequestError."""
    raw, with_contents = request.raw_input_contents, sum(tensor.HasField("contents") for tensor in request.inputs)
    if (len(raw), with_contents) not in ((len(request.inputs), 0), (0, len(request.inputs))):
        raise RequestError("each input must have contents, or each one element of raw_input_contents")
    found = []
    for index, tensor in enumerate(request.inputs):
        contents, shape = tensor.contents, tensor.shape[:MAX_DIMENSIONS]
        elements = contents.uint_contents if tensor.datatype == "UINT8" else contents.bytes_contents
        bytes_or_elements = (raw[index], None) if raw else (None, elements)
        found.append(protocol.Given(tensor.name, tensor.datatype, shape, *bytes_or_elements))
    return found
