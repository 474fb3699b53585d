"""The gRPC side of the server, over a socket, with releases that are in use without a Kafka."""

import asyncio
import gzip
import io
import random
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import grpc
import numpy as np
import pytest
from computed import PIXELS, SHAPE, Releases, computed
from PIL import Image
from released import CLASSES

from stream_learner.config import ServeSettings
from stream_learner.errors import UsageError
from stream_learner.follow.serving.app import Application
from stream_learner.follow.serving.grpc import GrpcServer
from stream_learner.follow.serving.messages import MESSAGES, SERVICE, parse
from stream_learner.local.broker import HOST
from stream_learner.program import VERSION

MAX_IMAGES = 20
SETTINGS = ServeSettings(max_images=MAX_IMAGES, max_body_bytes=100_000, timeout_s=20.0)
CODE = grpc.StatusCode
# A request as tritonclient 2.73 writes it: run "digits", id "x1", two pixels, output "labels", parameters.
TRITONCLIENT = bytes.fromhex(
    "0a066469676974731a02783122080a016112031a0162220e0a087072696f7269747912022801220d0a0774696d656f7574120210052a12"
    "0a06696d61676573120555494e54381a0102321e0a066c6162656c7312140a0e636c617373696669636174696f6e120210033a020102"
)


class Served:
    """A server in a thread, and a channel to it."""

    def __init__(self, releases: Releases, settings: ServeSettings):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.server = self.run(self._start(releases, settings))
        self.channel = grpc.insecure_channel(f"{HOST}:{self.server.port}")

    async def _start(self, releases: Any, settings: ServeSettings) -> GrpcServer:
        server = GrpcServer(Application("digits", releases, settings), 0)
        await server.start()
        return server

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def send(self, name: str, body: bytes, **options: Any) -> Any:
        answer = self.channel.unary_unary(f"/{SERVICE}/{name}")(body, **options)
        return MESSAGES[f"{name}Response"].FromString(answer)

    def call(self, name: str, /, **fields: Any) -> Any:
        return self.send(name, MESSAGES[f"{name}Request"](**fields).SerializeToString())

    def infer(self, *raw: bytes, outputs: Any = (), **fields: Any) -> Any:
        given = {"name": "images", "datatype": "UINT8", "shape": SHAPE} | fields
        asked = [{"name": name} for name in outputs]
        return self.call("ModelInfer", model_name="digits", inputs=[given], outputs=asked, raw_input_contents=raw)

    def close(self) -> None:
        self.channel.close()
        self.run(self.server.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    server = Served(Releases(computed(4, 1), computed(5, 2)), SETTINGS)
    yield server
    server.close()


def refused(code: grpc.StatusCode, call: Any, *arguments: Any, **fields: Any) -> str:
    """Return the reason of a refusal with this code."""
    with pytest.raises(grpc.RpcError) as error:
        call(*arguments, **fields)
    failed: Any = error.value
    assert failed.code() is code, failed
    return failed.details()


def test_metadata(served: Served) -> None:
    assert served.call("ServerLive").live
    assert served.call("ServerReady").ready
    found = served.call("ServerMetadata")
    assert (found.name, found.version, list(found.extensions)) == ("stream-learner", VERSION, ["binary_tensor_data"])
    for version in ("", "4"):
        assert served.call("ModelReady", name="digits", version=version).ready
        model = served.call("ModelMetadata", name="digits", version=version)
        assert (model.name, list(model.versions), model.platform) == ("digits", ["4", "5"], "stream-learner")
        assert [(one.name, one.datatype, list(one.shape)) for one in [*model.inputs, *model.outputs]] == [
            ("images", "UINT8", [-1, 8, 8, 1]),
            ("labels", "BYTES", [-1]),
            ("logits", "FP32", [-1, CLASSES]),
            ("probabilities", "FP32", [-1, CLASSES]),
        ]
    for name in ("ModelReady", "ModelMetadata"):
        assert "the model is 'digits'" in refused(CODE.NOT_FOUND, served.call, name, name="other")
        assert "is not loaded" in refused(CODE.NOT_FOUND, served.call, name, name="digits", version="6")


def test_predictions(served: Served) -> None:
    raw = PIXELS.tobytes()
    written = io.BytesIO()
    Image.fromarray(PIXELS[0, :, :, 0]).save(written, "PNG")
    png = written.getvalue()
    element = struct.pack("<I", len(png)) + png
    for answer in (
        served.infer(raw),
        served.infer(contents={"uint_contents": [*raw]}),
        served.infer(element, datatype="BYTES", shape=[1]),
        served.infer(contents={"bytes_contents": [png]}, datatype="BYTES", shape=[1]),
    ):
        assert (answer.model_name, answer.model_version, answer.id) == ("digits", "5", "")
        assert [(one.key, one.value.int64_param) for one in answer.parameters] == [("epoch", 1)]
        labels, logits, probabilities = answer.outputs
        assert (labels.name, labels.datatype, list(labels.shape)) == ("labels", "BYTES", [1])
        assert (logits.name, logits.datatype, list(logits.shape)) == ("logits", "FP32", [1, CLASSES])
        assert answer.raw_output_contents[0] == b"\3\0\0\0cat"
        assert np.frombuffer(answer.raw_output_contents[1], "<f4").tolist() == [14.0] * CLASSES
        assert np.frombuffer(answer.raw_output_contents[2], "<f4").sum() == pytest.approx(1)
        assert probabilities.name == "probabilities"
    several = np.repeat(PIXELS, MAX_IMAGES, 0) + np.arange(MAX_IMAGES, dtype=np.uint8).reshape(-1, 1, 1, 1)
    answer = served.infer(several.tobytes(), shape=[MAX_IMAGES, 8, 8, 1], outputs=["logits"])
    assert [one.name for one in answer.outputs] == ["logits"]
    rows = np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(answer.outputs[0].shape)
    np.testing.assert_allclose(rows[:, 0], 2.0 * np.arange(7, 7 + MAX_IMAGES))


def test_refusals(served: Served) -> None:
    raw = PIXELS.tobytes()
    for reason, contents, fields in [
        ("the inputs must be 'images' and, if wanted, 'ids', not ['image']", [raw], {"name": "image"}),
        ("must be UINT8 or BYTES, not 'FP32'", [raw], {"datatype": "FP32"}),
        ("not [-1, 8, 8, 1]", [raw], {"shape": [-1, 8, 8, 1]}),
        ("with N from 1 to 20, not [21, 8, 8, 1]", [raw], {"shape": [21, 8, 8, 1]}),
        ("not []", [raw], {"shape": []}),
        ("not [1, 1, 1, 1, 1, 1, 1, 1]", [raw], {"shape": [1] * 9000}),
        ("not [9223372036854775807, 8, 8, 1]", [raw], {"shape": [2**63 - 1, 8, 8, 1]}),
        ("has 63 values, not 64", [raw[1:]], {}),
        ("has 65 values, not 64", [raw + b"x"], {}),
        ("each input must have contents, or each one element of raw_input_contents", [], {}),
        ("each one element", [raw, raw], {}),
        ("each input must have contents", [raw], {"contents": {"uint_contents": [*raw]}}),
        ("has 0 values, not 64", [], {"contents": {"bytes_contents": [raw]}}),
        ("from 0 to 255", [], {"contents": {"uint_contents": [256] * 64}}),
        ("no output 'classes'", [raw], {"outputs": ["classes"]}),
        ("fewer bytes than its 1 elements need", [b"\4\0\0\0abc"], {"datatype": "BYTES", "shape": [1]}),
        ("not a JPEG or PNG", [b"\3\0\0\0abc"], {"datatype": "BYTES", "shape": [1]}),
        ("not a JPEG or PNG", [], {"datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [b"abc"]}}),
    ]:
        assert reason in refused(CODE.INVALID_ARGUMENT, served.infer, *contents, **fields)
    for name in ("ModelInfer", "ModelReady", "ModelMetadata"):
        assert f"not a valid {name}Request" in refused(CODE.INVALID_ARGUMENT, served.send, name, b"\xff" * 10)
    assert "not []" in refused(CODE.INVALID_ARGUMENT, served.call, "ModelInfer", model_name="digits")
    for body in (b"\x2a\x00" * 65, b"\x32\x00" * 40_000):
        assert "more than 64 fields" in refused(CODE.INVALID_ARGUMENT, served.send, "ModelInfer", body)
    nothing = served.channel.stream_unary(f"/{SERVICE}/ServerLive")
    assert "has no ServerLiveRequest" in refused(CODE.INVALID_ARGUMENT, nothing, iter(()))
    fields = {"model_name": "digits", "id": "x" * 257, "inputs": [{}]}
    assert "the id is longer than 256" in refused(CODE.INVALID_ARGUMENT, served.call, "ModelInfer", **fields)
    long = refused(CODE.NOT_FOUND, served.call, "ModelReady", name="\u00e9" * 40_000)
    assert long.startswith("there is no model")
    assert refused(CODE.UNIMPLEMENTED, served.channel.unary_unary(f"/{SERVICE}/RepositoryModelLoad"), b"")
    too_long = bytes(SETTINGS.max_body_bytes + 1)
    assert "larger than max" in refused(CODE.RESOURCE_EXHAUSTED, served.send, "ModelInfer", too_long)
    bomb = {"compression": grpc.Compression.Gzip}
    assert len(gzip.compress(too_long)) < 1000
    assert refused(CODE.UNIMPLEMENTED, served.send, "ModelInfer", too_long, **bomb)
    assert served.infer(PIXELS.tobytes()).model_version == "5"


def test_a_request_of_another_program(served: Served) -> None:
    """Fields and parameters that are not known here are skipped."""
    found = MESSAGES["ModelInferRequest"].FromString(TRITONCLIENT)
    assert (found.model_name, found.id, found.inputs[0].datatype, found.outputs[0].name) == (
        "digits",
        "x1",
        "UINT8",
        "labels",
    )
    assert list(found.raw_input_contents) == [b"\1\2"]
    assert "not [2]" in refused(CODE.INVALID_ARGUMENT, served.send, "ModelInfer", TRITONCLIENT)


def test_damaged_messages() -> None:
    """Whatever the bytes are, they are a message or a ValueError."""
    chance, parsed = random.Random(0), 0
    for _ in range(3000):
        body = bytearray(TRITONCLIENT[: chance.randint(1, len(TRITONCLIENT))])
        for _ in range(chance.randint(0, 3)):
            body[chance.randrange(len(body))] = chance.randrange(256)
        with suppress(ValueError):
            parse("ModelInferRequest", bytes(body))
            parsed += 1
    assert parsed > 10
    for body in (b"\xff" * 20, b"\x0b", b"\x2a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x08", b"\x09\1", b"\x0a\1\xff"):
        with pytest.raises(ValueError, match="not a valid ModelInferRequest"):
            parse("ModelInferRequest", body)


def test_before_the_first_release_and_without_time() -> None:
    releases = Releases()
    server, hasty = Served(releases, SETTINGS), Served(releases, SETTINGS.model_copy(update={"timeout_s": 1e-9}))
    try:
        assert server.call("ServerLive").live
        assert not server.call("ServerReady").ready
        assert "has not released a model yet" in refused(CODE.UNAVAILABLE, server.infer, PIXELS.tobytes())
        releases.kept.append(computed(4, 1))
        assert server.call("ServerReady").ready
        assert "no answer within 1e-09 s" in refused(CODE.UNAVAILABLE, hasty.infer, PIXELS.tobytes())
        # A client that never sends the message.
        answered = threading.Event()
        never = (b"" for _ in range(1) if answered.wait())
        live = hasty.channel.stream_unary(f"/{SERVICE}/ServerLive")
        assert "no answer within 1e-09 s" in refused(CODE.UNAVAILABLE, live, never, timeout=20)
        answered.set()
        with pytest.raises(UsageError, match=f"cannot listen on {HOST}:{server.server.port}; change serve.host or"):
            server.run(listen(releases, server.server.port))
    finally:
        server.close()
        hasty.close()


async def listen(releases: Any, port: int) -> None:
    GrpcServer(Application("digits", releases, SETTINGS), port)
