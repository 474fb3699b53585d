"""Protobuf messages of the protocol's gRPC service, with the fields that are used here. Parsers skip other fields.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/open_inference_grpc.proto

The messages are built from a table, in a pool of their own. Generated code would bind this program to some versions of
protobuf, and could not be imported beside another client's code for the same service.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"
MAX_FIELDS = 64
"""Fields of a request: its inputs, outputs, parameters and so on."""

_Field = descriptor_pb2.FieldDescriptorProto
BOOL, BYTES, INT64, STRING, UINT32 = (
    _Field.TYPE_BOOL,
    _Field.TYPE_BYTES,
    _Field.TYPE_INT64,
    _Field.TYPE_STRING,
    _Field.TYPE_UINT32,
)

# Number and type of each field. A type is a scalar's, or another message's name. A list is a repeated field.
_MODEL = {"name": (1, STRING), "version": (2, STRING)}
_TENSOR = {"name": (1, STRING), "datatype": (2, STRING), "shape": (3, [INT64])}
_MESSAGES: dict[str, dict[str, tuple[int, Any]]] = {
    "ServerLiveRequest": {},
    "ServerLiveResponse": {"live": (1, BOOL)},
    "ServerReadyRequest": {},
    "ServerReadyResponse": {"ready": (1, BOOL)},
    "ModelReadyRequest": _MODEL,
    "ModelReadyResponse": {"ready": (1, BOOL)},
    "ServerMetadataRequest": {},
    "ServerMetadataResponse": {"name": (1, STRING), "version": (2, STRING), "extensions": (3, [STRING])},
    "ModelMetadataRequest": _MODEL,
    "ModelMetadataResponse": {
        "name": (1, STRING),
        "versions": (2, [STRING]),
        "platform": (3, STRING),
        "inputs": (4, ["TensorMetadata"]),
        "outputs": (5, ["TensorMetadata"]),
    },
    "TensorMetadata": _TENSOR,
    "ModelInferRequest": {
        "model_name": (1, STRING),
        "model_version": (2, STRING),
        "id": (3, STRING),
        "inputs": (5, ["InferInputTensor"]),
        "outputs": (6, ["InferRequestedOutputTensor"]),
        "raw_input_contents": (7, [BYTES]),
    },
    "InferInputTensor": _TENSOR | {"contents": (5, "InferTensorContents")},
    "InferTensorContents": {"uint_contents": (4, [UINT32]), "bytes_contents": (8, [BYTES])},
    "InferRequestedOutputTensor": {"name": (1, STRING)},
    "ModelInferResponse": {
        "model_name": (1, STRING),
        "model_version": (2, STRING),
        "id": (3, STRING),
        "parameters": (4, ["Parameter"]),  # a map, which is a list of entries
        "outputs": (5, ["InferOutputTensor"]),
        "raw_output_contents": (6, [BYTES]),
    },
    "InferOutputTensor": _TENSOR,
    "Parameter": {"key": (1, STRING), "value": (2, "InferParameter")},
    "InferParameter": {"int64_param": (2, INT64)},
}


def _field(name: str, number: int, kind: Any) -> descriptor_pb2.FieldDescriptorProto:
    label = _Field.LABEL_OPTIONAL
    if isinstance(kind, list):
        label, (kind,) = _Field.LABEL_REPEATED, kind
    if isinstance(kind, str):
        return _Field(name=name, number=number, label=label, type=_Field.TYPE_MESSAGE, type_name=f".{PACKAGE}.{kind}")
    return _Field(name=name, number=number, label=label, type=kind)


def _classes() -> dict[str, type[Any]]:
    file = descriptor_pb2.FileDescriptorProto(name="open_inference.proto", package=PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        file.message_type.add(name=name, field=[_field(field, *rest) for field, rest in fields.items()])
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in _MESSAGES
    }


MESSAGES = _classes()
"""Class of each message, by its name."""


def parse(name: str, body: bytes) -> Any:
    """Parse a message. Raises ValueError if it is not valid or has more than MAX_FIELDS fields.

    The fields are counted before the message is parsed, because an empty input of two bytes takes 80 bytes in memory.
    """
    count = place = 0
    try:
        while place < len(body):
            place = _next_field(body, place)
            count += 1
            if count > MAX_FIELDS:
                raise ValueError(f"the request has more than {MAX_FIELDS} fields")
        return MESSAGES[name].FromString(body)
    except (IndexError, DecodeError):
        raise ValueError(f"the request is not a valid {name}") from None


def _next_field(body: bytes, place: int) -> int:
    """Return the place after the field that begins at `place`. https://protobuf.dev/programming-guides/encoding"""
    tag, place = _varint(body, place)
    match tag & 7:
        case 0:
            return _varint(body, place)[1]
        case 1:
            return place + 8
        case 2:
            size, place = _varint(body, place)
            return place + size
        case 5:
            return place + 4
    raise IndexError


def _varint(body: bytes, place: int) -> tuple[int, int]:
    """Return the integer at `place`, and the place after it. Raises IndexError."""
    value = 0
    for shift in range(0, 70, 7):
        byte = body[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise IndexError
