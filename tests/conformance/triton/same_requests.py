"""Sends the same requests, good and malformed, to a server of the Open Inference Protocol, and prints what it answers.

`same_requests.py HTTP_PORT GRPC_PORT PIXELS ENCODED IMAGE`: the names of the model that takes UINT8 and of the one that
takes BYTES, which may be the same, and a file with an encoded image.
The output is a JSON object: case to what was answered. Runs in an environment with tritonclient.
"""

import http.client
import json
import struct
import sys
from pathlib import Path

import grpc
import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.grpc import service_pb2, service_pb2_grpc

HOST = "127.0.0.1"
LENGTH = "Inference-Header-Content-Length"
SHAPE = [2, 8, 8, 1]
PIXELS = np.arange(128, dtype=np.uint8).reshape(SHAPE)
FLAT = PIXELS.ravel().tolist()


class Http:
    """Requests over HTTP, byte for byte."""

    def __init__(self, port, pixels, encoded, image):
        self._port, self._pixels, self._encoded, self._image = port, pixels, encoded, image

    def answers(self):
        return {f"http: {name}": self._answer(*request) for name, request in self._cases()}

    def _cases(self):
        infer, images = f"/v2/models/{self._pixels}/infer", f"/v2/models/{self._encoded}/infer"

        def pixels(**changes):
            return {"name": "images", "datatype": "UINT8", "shape": SHAPE, "data": FLAT} | changes

        def binary(size=128, **changes):
            given = {"name": "images", "datatype": "UINT8", "shape": SHAPE, "parameters": {"binary_data_size": size}}
            return given | changes

        def document(*inputs, **more):
            return {"inputs": list(inputs)} | more

        def post(body, path=infer, **headers):
            return "POST", path, body if isinstance(body, bytes) else json.dumps(body).encode(), headers

        def mixed(body, raw, path=infer, length=None):
            header = json.dumps(body).encode()
            return post(header + raw, path, **{LENGTH: str(len(header) if length is None else length)})

        raw, image = PIXELS.tobytes(), element(self._image)
        encoded = binary(len(image), datatype="BYTES", shape=[1])
        labels = [{"name": "labels"}]
        good = json.dumps(document(pixels())).encode()
        yield "live", ("GET", "/v2/health/live", None, {})
        yield "ready", ("GET", "/v2/health/ready", None, {})
        yield "model ready", ("GET", f"/v2/models/{self._pixels}/ready", None, {})
        yield "another model", ("GET", "/v2/models/other", None, {})
        yield "another version", ("GET", f"/v2/models/{self._pixels}/versions/99", None, {})
        yield "infer with another model", post(good, "/v2/models/other/infer")
        yield "infer with another version", post(good, f"/v2/models/{self._pixels}/versions/99/infer")
        yield "no such page", ("GET", "/v3", None, {})
        yield "GET of infer", ("GET", infer, None, {})
        yield "flat data", post(good)
        yield "nested data", post(document(pixels(data=PIXELS.tolist())))
        yield "an id", post(document(pixels(), id="an id \u00e9"))
        yield (
            "outputs in another order",
            post(document(pixels(), outputs=[{"name": "probabilities"}, {"name": "labels"}])),
        )
        yield "binary input", mixed(document(binary()), raw)
        yield "binary input and outputs", mixed(document(binary(), parameters={"binary_data_output": True}), raw)
        yield (
            "one binary output",
            mixed(
                document(
                    binary(),
                    outputs=[{"name": "labels", "parameters": {"binary_data": True}}, {"name": "logits"}],
                ),
                raw,
            ),
        )
        yield (
            "all outputs binary but one",
            mixed(
                document(
                    binary(),
                    outputs=[{"name": "labels", "parameters": {"binary_data": False}}, {"name": "logits"}],
                    parameters={"binary_data_output": True},
                ),
                raw,
            ),
        )
        yield "encoded images", mixed(document(encoded, outputs=labels), image, images)
        yield "unknown parameters", post(document(pixels(), parameters={"a": 1, "b": "c"}))
        yield "unknown fields", post(document(pixels(), more=[1]))
        yield "header length without binary data", mixed(document(pixels()), b"")
        yield "another input's name", post(document(pixels(name="image")))
        yield "no input", post(document())
        yield "no inputs", post({"input": []})
        yield "two inputs", post(document(pixels(), pixels(name="more")))
        yield "an input twice", post(document(pixels(), pixels()))
        yield "another datatype", post(document(pixels(datatype="FP32")))
        yield "no datatype", post(document({"name": "images", "shape": SHAPE, "data": FLAT}))
        yield "unknown datatype", post(document(pixels(datatype="PIXELS")))
        yield "negative shape", post(document(pixels(shape=[-1, 8, 8, 1])))
        yield "no images", post(document(pixels(shape=[0, 8, 8, 1], data=[])))
        yield "another shape", post(document(pixels(shape=[2, 64])))
        yield "larger images", post(document(pixels(shape=[1, 16, 8, 1])))
        yield "empty shape", post(document(pixels(shape=[])))
        yield "no shape", post(document({"name": "images", "datatype": "UINT8", "data": FLAT}))
        yield "shape of text", post(document(pixels(shape=["2", 8, 8, 1])))
        yield "too few values", post(document(pixels(data=FLAT[1:])))
        yield "too many values", post(document(pixels(data=[*FLAT, 0])))
        yield "no data", post(document({"name": "images", "datatype": "UINT8", "shape": SHAPE}))
        yield "value 256", post(document(pixels(data=[256, *FLAT[1:]])))
        yield "value -1", post(document(pixels(data=[-1, *FLAT[1:]])))
        yield "value 0.5", post(document(pixels(data=[0.5, *FLAT[1:]])))
        yield "text values", post(document(pixels(data=["0", *FLAT[1:]])))
        yield "unknown output", post(document(pixels(), outputs=[{"name": "classes"}]))
        yield "output without a name", post(document(pixels(), outputs=[{}]))
        yield "an id that is a number", post(document(pixels(), id=5))
        yield "empty body", post(b"")
        yield "broken JSON", post(good[:-1])
        yield "bytes that are not JSON", post(b"\xff\x00")
        yield "a list", post([1])
        yield "binary data too short", mixed(document(binary()), raw[1:])
        yield "binary data too long", mixed(document(binary()), raw + b"x")
        yield "binary data shorter than the shape", mixed(document(binary(127)), raw[1:])
        yield "binary data longer than the shape", mixed(document(binary(129)), raw + b"x")
        yield "negative binary size", mixed(document(binary(-1)), raw)
        yield "huge binary size", mixed(document(binary(2**62)), raw)
        yield "binary size of text", mixed(document(binary("128")), raw)
        yield "bytes after JSON data", mixed(document(pixels()), b"x")
        for length in (len(good) + 1, 2**70, -1, "x"):
            yield (
                f"header length {length if length != len(good) + 1 else 'after the end'}",
                mixed(document(pixels()), b"", length=length),
            )
        yield (
            "an element longer than the bytes",
            mixed(document(binary(7, datatype="BYTES", shape=[1])), b"\4\0\0\0abc", images),
        )
        yield "half a length", mixed(document(binary(2, datatype="BYTES", shape=[1])), b"\1\0", images)
        yield (
            "more elements than the shape",
            mixed(document(binary(2 * len(image), datatype="BYTES", shape=[1])), image * 2, images),
        )
        yield (
            "fewer elements than the shape",
            mixed(document(binary(len(image), datatype="BYTES", shape=[2])), image, images),
        )
        yield "BYTES without data", post(document({"name": "images", "datatype": "BYTES", "shape": [1]}), images)
        yield "still good", post(good)

    def _answer(self, method, path, body, headers):
        connection = http.client.HTTPConnection(HOST, self._port, timeout=60)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return self._understood(response, response.read())
        except (OSError, http.client.HTTPException) as error:
            return {"status": type(error).__name__}
        finally:
            connection.close()

    def _understood(self, response, content):
        answer = {"status": response.status}
        if response.status != 200:
            with_reason = content.startswith(b"{") and [*json.loads(content)] == ["error"]
            return answer | {"reason": with_reason, "text": content.decode("utf-8", "replace")}
        if not content.startswith(b"{"):
            return answer
        length = response.headers.get(LENGTH)
        header = json.loads(content[: int(length)] if length else content)
        if "outputs" not in header:
            return answer
        place, outputs = int(length or 0), []
        for output in header["outputs"]:
            size = output.get("parameters", {}).get("binary_data_size")
            data = output.get("data")
            if size is not None:
                data = values(content[place : place + size], output["datatype"])
                place += size
            outputs.append([output["name"], output["datatype"], output["shape"], data, size is not None])
        assert not length or place == len(content)
        return answer | {"outputs": outputs, "id": header.get("id", "")}


class Grpc:
    """Requests over gRPC, field by field."""

    def __init__(self, port, pixels, encoded, image):
        self._channel = grpc.insecure_channel(f"{HOST}:{port}")
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._pixels, self._encoded, self._image = pixels, encoded, image

    def answers(self):
        answers = {f"grpc: {name}": self._answer(*request) for name, request in self._cases()}
        self._channel.close()
        return answers

    def _cases(self):
        def infer(*raw, model=self._pixels, outputs=(), request_id="", version="", inputs=None, **changes):
            request = service_pb2.ModelInferRequest(model_name=model, model_version=version, id=request_id)
            for one in [{}] if inputs is None else inputs:
                given = {"name": "images", "datatype": "UINT8", "shape": SHAPE} | changes | one
                request.inputs.append(service_pb2.ModelInferRequest.InferInputTensor(**given))
            for output in outputs:
                request.outputs.add(name=output)
            request.raw_input_contents.extend(raw)
            return self._stub.ModelInfer, request

        raw, image, model = PIXELS.tobytes(), element(self._image), {"name": self._pixels}
        numbers, data = {"uint_contents": FLAT}, {"bytes_contents": [self._image]}
        encoded = {"model": self._encoded, "datatype": "BYTES", "shape": [1]}
        yield "live", (self._stub.ServerLive, service_pb2.ServerLiveRequest())
        yield "ready", (self._stub.ServerReady, service_pb2.ServerReadyRequest())
        yield "model ready", (self._stub.ModelReady, service_pb2.ModelReadyRequest(**model))
        yield "server metadata", (self._stub.ServerMetadata, service_pb2.ServerMetadataRequest())
        yield "metadata", (self._stub.ModelMetadata, service_pb2.ModelMetadataRequest(**model))
        yield "another model", (self._stub.ModelMetadata, service_pb2.ModelMetadataRequest(name="other"))
        yield "another version", (self._stub.ModelMetadata, service_pb2.ModelMetadataRequest(version="99", **model))
        yield "infer with another model", infer(raw, model="other")
        yield "infer with another version", infer(raw, version="99")
        yield "infer with a version that is no number", infer(raw, version="x")
        yield "raw contents", infer(raw)
        yield "contents", infer(contents=numbers)
        yield "an id", infer(raw, request_id="an id \u00e9")
        yield "outputs in another order", infer(raw, outputs=["probabilities", "labels"])
        yield "encoded images", infer(image, outputs=["labels"], **encoded)
        yield "encoded images as contents", infer(contents=data, outputs=["labels"], **encoded)
        yield "another input's name", infer(raw, name="image")
        yield "no input", infer(inputs=[])
        yield "two inputs", infer(raw, raw, inputs=[{}, {"name": "more"}])
        yield "an input twice", infer(raw, raw, inputs=[{}, {}])
        yield "another datatype", infer(raw, datatype="FP32")
        yield "no datatype", infer(raw, datatype="")
        yield "unknown datatype", infer(raw, datatype="PIXELS")
        yield "negative shape", infer(raw, shape=[-1, 8, 8, 1])
        yield "no images", infer(b"", shape=[0, 8, 8, 1])
        yield "another shape", infer(raw, shape=[2, 64])
        yield "empty shape", infer(raw, shape=[])
        yield "huge shape", infer(raw, shape=[2**62, 8, 8, 1])
        yield "too short", infer(raw[1:])
        yield "too long", infer(raw + b"x")
        yield "too few values", infer(contents={"uint_contents": FLAT[1:]})
        yield "value 256", infer(contents={"uint_contents": [256, *FLAT[1:]]})
        yield "values of another type", infer(contents={"int_contents": FLAT})
        yield "no contents", infer()
        yield "raw and other contents", infer(raw, contents=numbers)
        yield "more raw contents than inputs", infer(raw, raw)
        yield "unknown output", infer(raw, outputs=["classes"])
        yield "an element longer than the bytes", infer(b"\4\0\0\0abc", **encoded)
        yield "half a length", infer(b"\1\0", **encoded)
        yield "more elements than the shape", infer(image * 2, **encoded)
        yield "fewer elements than the shape", infer(image, **encoded | {"shape": [2]})
        yield "still good", infer(raw)

    def _answer(self, method, request):
        try:
            answer = method(request, timeout=60)
        except grpc.RpcError as error:
            return {"status": error.code().name, "text": error.details()}
        if not isinstance(answer, service_pb2.ModelInferResponse):
            return {"status": "OK", "fields": sorted(field.name for field, _ in answer.ListFields())}
        outputs = [
            [one.name, one.datatype, [*one.shape], values(raw, one.datatype), True]
            for one, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
        ]
        return {"status": "OK", "outputs": outputs, "id": answer.id}


def by_client(library, port, model):
    """Ask through tritonclient, which checks the answers too."""
    client = library.InferenceServerClient(f"{HOST}:{port}")
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(model)
    given = library.InferInput("images", SHAPE, "UINT8")
    given.set_data_from_numpy(PIXELS)
    result = client.infer(model, [given], request_id="an id")
    outputs = {}
    for name in ("labels", "logits", "probabilities"):
        found = result.as_numpy(name)
        outputs[name] = [one.decode() for one in found] if name == "labels" else found.tolist()
    metadata = client.get_model_metadata(model)
    if isinstance(metadata, dict):
        tensors = [*metadata["inputs"], *metadata["outputs"]]
        shown = [[one["name"], one["datatype"], one["shape"]] for one in tensors]
    else:
        shown = [[one.name, one.datatype, [*one.shape]] for one in [*metadata.inputs, *metadata.outputs]]
    client.close()
    return {"status": "OK", "values": outputs, "metadata": shown}


def element(content):
    return struct.pack("<I", len(content)) + content


def values(raw, datatype):
    if datatype == "FP32":
        return np.frombuffer(raw, "<f4").tolist()
    texts, place = [], 0
    while place < len(raw):
        (size,) = struct.unpack_from("<I", raw, place)
        texts.append(raw[place + 4 : place + 4 + size].decode())
        place += 4 + size
    return texts


def main(http_port, grpc_port, pixels, encoded, image):
    content = Path(image).read_bytes()
    answers = Http(int(http_port), pixels, encoded, content).answers()
    answers |= Grpc(grpc_port, pixels, encoded, content).answers()
    answers["tritonclient over HTTP"] = by_client(triton_http, http_port, pixels)
    answers["tritonclient over gRPC"] = by_client(triton_grpc, grpc_port, pixels)
    print(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
