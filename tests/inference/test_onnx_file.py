"""Self-contained ONNX files, compared with ONNX's own library."""

import numpy as np
import onnx
import onnxruntime
import pytest

from stream_learner.inference.onnx import PREFIX
from stream_learner.inference.onnx_file import self_contained

WEIGHT = np.arange(300, dtype=np.float32).reshape(3, 100)
BIAS = np.arange(100, dtype=np.float32)


def graph() -> bytes:
    """A linear layer whose parameters are outside. A constant is inside."""
    outside = [
        onnx.TensorProto(name=PREFIX + name, data_type=onnx.TensorProto.FLOAT, dims=array.shape)
        for name, array in (("weight", WEIGHT), ("bias", BIAS))
    ]
    for tensor in outside:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="parameters")
    two = onnx.numpy_helper.from_array(np.full(1, 2, np.float32), "two")
    nodes = [
        onnx.helper.make_node("Gemm", ["x", PREFIX + "weight", PREFIX + "bias"], ["y"]),
        onnx.helper.make_node("Mul", ["y", "two"], ["z"]),
    ]
    value = onnx.helper.make_tensor_value_info
    made = onnx.helper.make_graph(
        nodes,
        "linear",
        [value("x", onnx.TensorProto.FLOAT, ["N", 3])],
        [value("z", onnx.TensorProto.FLOAT, ["N", 100])],
        [*outside, two],
    )
    model = onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString()


def test_the_parameters_are_in_the_file() -> None:
    data = self_contained(graph(), {"weight": WEIGHT, "bias": BIAS, "unused": BIAS})
    onnx.checker.check_model(onnx.load_model_from_string(data), full_check=True)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_allclose(np.asarray(session.run(None, {"x": x})[0]), 2 * (x @ WEIGHT + BIAS), rtol=1e-6)


def test_all_else_stays() -> None:
    before = onnx.load_model_from_string(graph())
    after = onnx.load_model_from_string(self_contained(graph(), {"weight": WEIGHT, "bias": BIAS}))
    for tensor, array in zip(before.graph.initializer, (WEIGHT, BIAS), strict=False):
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        tensor.raw_data = array.tobytes()
    assert after == before


def test_a_parameter_that_is_missing() -> None:
    with pytest.raises(ValueError, match=r"no parameter for the graph's network\.bias"):
        self_contained(graph(), {"weight": WEIGHT})


def test_bytes_that_are_no_graph() -> None:
    with pytest.raises(ValueError, match="not a protobuf message"):
        self_contained(b"not a graph", {})
    parameters = {"weight": WEIGHT, "bias": BIAS}
    whole = graph()
    for size in range(len(whole)):
        try:
            cut = self_contained(whole[:size], parameters)
        except ValueError:
            continue
        assert self_contained(whole, parameters).startswith(cut)  # cut between two fields of the model
