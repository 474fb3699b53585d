"""Bodies of requests and responses of the protocol over HTTP, with JSON and binary tensors.

With Triton's extension for binary tensors, the bytes of the tensors follow the JSON in its order. The HTTP header
HEADER_LENGTH is then the length of the JSON.
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

import base64
import binascii
from itertools import accumulate
from operator import mul
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta

from stream_learner.config import MIB
from stream_learner.contract import documents
from stream_learner.follow.releases import Release
from stream_learner.follow.serving.protocol import (
    DATATYPES,
    IDS,
    Given,
    Outputs,
    RequestError,
    check_outputs,
    raw,
    shape,
    version,
)

HEADER_LENGTH = "inference-header-content-length"
# A number in JSON takes up to twenty times its length in memory. Large tensors have the binary form.
MAX_JSON_BYTES = 8 * MIB

Size = Annotated[int, Meta(ge=0, le=2**40)]
Name = Annotated[str, Meta(max_length=256)]


class Parameters(msgspec.Struct, frozen=True):
    """Parameters of the protocol that are used here. Others are ignored."""

    binary_data_size: Size | None = None
    """Bytes of this input after the JSON."""
    binary_data: bool | None = None
    """Whether this output is sent after the JSON."""
    binary_data_output: bool = False
    """The same for all outputs without `binary_data`."""


class Input(msgspec.Struct):
    name: Name
    datatype: Name
    shape: Annotated[list[Size], Meta(max_length=8)]
    data: msgspec.Raw = msgspec.Raw()
    parameters: Parameters = Parameters()


class Output(msgspec.Struct):
    name: Name
    parameters: Parameters = Parameters()


class Document(msgspec.Struct):
    inputs: Annotated[list[Input], Meta(max_length=16)]
    outputs: Annotated[list[Output], Meta(max_length=16)] | None = None
    id: Name | None = None
    parameters: Parameters = Parameters()


class Request(NamedTuple):
    """A decoded request. `outputs` maps the outputs to send to whether they are binary."""

    id: str | None
    inputs: list[Given]
    outputs: dict[str, bool]


def decode(body: bytes, header_length: bytes | None) -> Request:
    """Decode the body of a request. `header_length` is the value of HEADER_LENGTH if the request has it.

    Raises RequestError.
    """
    length = len(body) if header_length is None else _number(header_length, len(body))
    try:
        document = documents.decode(body[:length], Document, MAX_JSON_BYTES)
    except ValueError as error:
        raise RequestError(f"the request is not valid: {error}") from None
    inputs, place = [], length
    for tensor in document.inputs:
        size = tensor.parameters.binary_data_size
        if size is None:
            inputs.append(Given(tensor.name, tensor.datatype, tensor.shape, None, _elements(tensor)))
            continue
        if size > len(body) - place:
            raise RequestError(f"binary_data_size of {tensor.name!r} is {size}, but {len(body) - place} bytes are left")
        inputs.append(Given(tensor.name, tensor.datatype, tensor.shape, body[place : place + size], None))
        place += size
    if place < len(body):
        raise RequestError(f"{len(body) - place} bytes follow the JSON and the binary tensors")
    return Request(document.id, inputs, _outputs(document))


def _number(text: bytes, most: int) -> int:
    if not (text.isdigit() and len(text) < 20 and int(text) <= most):
        raise RequestError(f"{HEADER_LENGTH} must be a number up to the length of the body, {most}")
    return int(text)


def _elements(tensor: Input) -> list[Any]:
    """Return the elements of a tensor. Its lists may be flat, or nested as its shape is. Images are base64."""
    if tensor.datatype not in ("BYTES", "UINT8"):
        return []  # refused by its datatype
    data = bytes(tensor.data)
    if not data:
        raise RequestError(f"{tensor.name!r} has neither data nor binary_data_size")
    if tensor.datatype == "UINT8":
        return _numbers(tensor, data)
    try:
        elements = msgspec.json.decode(data, type=list[str])
    except ValueError:
        raise RequestError(f"the data of {tensor.name!r} must be a list of str") from None
    if tensor.name == IDS:
        return [text.encode() for text in elements]
    try:
        return [base64.b64decode(text, validate=True) for text in elements]
    except (binascii.Error, ValueError):
        raise RequestError(f"the data of {tensor.name!r} as BYTES must be base64") from None


def _numbers(tensor: Input, data: bytes) -> list[int]:
    """Decode numbers. The brackets of inner lists are removed first, because millions of lists would take seconds."""
    lists = data.count(b"[")
    try:
        if lists in (1, sum(accumulate(tensor.shape[:-1], mul, initial=1))):
            return msgspec.json.decode(b"[" + data.translate(None, b"[]") + b"]", type=list[int])
    except ValueError:
        pass
    raise RequestError(f"the data of {tensor.name!r} must be a list of int, flat or nested as its shape")


def _outputs(document: Document) -> dict[str, bool]:
    everything = document.parameters.binary_data_output
    if not document.outputs:
        return dict.fromkeys(DATATYPES, everything)
    check_outputs(output.name for output in document.outputs)
    return {
        output.name: everything if output.parameters.binary_data is None else output.parameters.binary_data
        for output in document.outputs
    }


def encode(request: Request, model: str, release: Release, values: Outputs) -> tuple[bytes, int | None]:
    """Return the body of a response, and the value of HEADER_LENGTH if the response has binary tensors.

    `values` are the outputs of the protocol.
    """
    outputs, binaries = [], []
    for name, binary in request.outputs.items():
        value = values[name]
        output: dict[str, Any] = {"name": name, "datatype": DATATYPES[name], "shape": shape(value)}
        if binary:
            binaries.append(raw(value))
            output["parameters"] = {"binary_data_size": len(binaries[-1])}
        else:
            output["data"] = value.ravel().tolist() if isinstance(value, np.ndarray) else value
        outputs.append(output)
    document: dict[str, Any] = {"model_name": model, "model_version": version(release)}
    if request.id is not None:
        document["id"] = request.id
    document |= {"parameters": {"epoch": release.manifest.epoch}, "outputs": outputs}
    header = msgspec.json.encode(document)
    return b"".join([header, *binaries]), len(header) if binaries else None
