"""Releases that ONNX Runtime computes, without a worker and without a follower."""

from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import onnx
from released import CLASSES, release

from stream_learner.contract.manifest import OnnxGraph
from stream_learner.errors import NoReleaseError
from stream_learner.follow.releases import Objects, Release

SHAPE = [1, 8, 8, 1]
PIXELS = np.full(SHAPE, 7, np.uint8)


def graph() -> bytes:
    """A network whose logits are the mean of an image, times its parameter."""
    value, node = onnx.helper.make_tensor_value_info, onnx.helper.make_node
    float_, uint8 = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8
    weight = onnx.TensorProto(name="network.weight", data_type=float_, dims=[1, CLASSES])
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="parameters")
    nodes = [
        node("Cast", ["images"], ["floats"], to=float_),
        node("ReduceMean", ["floats", "axes"], ["mean"], keepdims=0),
        node("Unsqueeze", ["mean", "one"], ["column"]),
        node("MatMul", ["column", "network.weight"], ["logits"]),
        node("Softmax", ["logits"], ["probabilities"]),
    ]
    axes = onnx.numpy_helper.from_array(np.array([1, 2, 3]), "axes")
    one = onnx.numpy_helper.from_array(np.array([1]), "one")
    outputs = [value(name, float_, ["N", CLASSES]) for name in ("logits", "probabilities")]
    made = onnx.helper.make_graph(nodes, "mean", [value("images", uint8, ["N", 8, 8, 1])], outputs, [weight, axes, one])
    model = onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString()


GRAPH = graph()


def computed(sequence: int, value: float) -> Release:
    """A release whose graph ONNX Runtime computes."""
    made = release(sequence, value=value, graph=GRAPH)
    onnx_graph = OnnxGraph(published=made.described.canary, unused=[], compared=0)
    described = msgspec.structs.replace(made.described, onnx=onnx_graph)
    return Release(made.manifest, described, Objects(made.data, b"", GRAPH))


class Releases:
    """Stands in for a follower: the releases that a test puts in use."""

    def __init__(self, *kept: Any):
        self.kept = list(kept)

    def latest(self) -> Any:
        if not self.kept:
            raise NoReleaseError("no release of run 'digits' is in use: its worker has not released a model yet")
        return self.kept[-1]

    @property
    def following(self) -> Any:
        release = self.kept[-1] if self.kept else None
        return SimpleNamespace(release=release, age_s=None, silence_s=0.0, refused=None)
