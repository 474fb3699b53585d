"""Protobuf messages of the protocol's gRPC service, with the fields that are used here. Parsers skip other fields.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/open_inference_grpc.proto

The messages are built from a table, in a pool of their own. Generated code would bind this program to some versions of
protobuf, and could not be imported beside another client's code for the same service.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"

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
