"""Export of networks as ONNX graphs, which ONNX Runtime computes as PyTorch does."""

from contextlib import chdir
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exporting import built, images_of, spec_of

from stream_learner.contract.manifest import ModelSpec
from stream_learner.inference.agreement import disagreement
from stream_learner.inference.onnx import OnnxModel
from stream_learner.networks.onnx_export import Exported, export
from stream_learner.networks.tensors import as_arrays

SPECS = {
    "mlp": spec_of("mlp", classes=1),
    "random features": spec_of("mlp", channels=1, random_features=16),
    "cnn": spec_of("cnn"),
    "resnet18_slim": spec_of("resnet18_slim"),
}
SECRET = np.full((5, 64), 7, np.float32)


@pytest.fixture(scope="module", params=SPECS)
def exported(request: pytest.FixtureRequest) -> tuple[ModelSpec, Exported]:
    spec = SPECS[request.param]
    shape = spec.arguments
    return spec, export(built(spec), shape.height, shape.width, shape.channels)


def test_any_number_of_images(exported: tuple[ModelSpec, Exported]) -> None:
    spec, made = exported
    network = built(spec)
    model = OnnxModel(made.graph, as_arrays(network.state_dict()), made.unused)
    for count in (1, 2, 33):
        images_NHWC = images_of(spec, count)
        expected = network(torch.from_numpy(images_NHWC)).detach()
        logits, probabilities = model(images_NHWC)
        assert disagreement(logits, expected.numpy()) is None
        np.testing.assert_allclose(probabilities, expected.softmax(1).numpy(), atol=1e-5)


def test_the_graph_holds_no_parameters_and_no_names_of_files(exported: tuple[ModelSpec, Exported]) -> None:
    spec, made = exported
    network = built(spec)
    graph = onnx.load_model_from_string(made.graph).graph
    outside = {i.name.removeprefix("network."): i for i in graph.initializer if i.data_location == i.EXTERNAL}
    assert outside.keys() == network.state_dict().keys() - {*made.unused}
    assert all(name.endswith("num_batches_tracked") for name in made.unused)
    assert Path(__file__).parents[2].name.encode() + b"/" not in made.graph
    assert b".py" not in made.graph


def test_parameters_that_do_not_fit(exported: tuple[ModelSpec, Exported]) -> None:
    spec, made = exported
    parameters = as_arrays(built(spec).state_dict())
    head = parameters["head.bias"]
    wrong = {
        "missing": {name: value for name, value in parameters.items() if name != "head.bias"},
        "surplus": parameters | {"more": head},
        "of another shape": parameters | {"head.bias": np.zeros(len(head) + 1, np.float32)},
        "of another type": parameters | {"head.bias": head.astype(np.float64)},
    }
    for one in wrong.values():
        with pytest.raises(ValueError, match="cannot load the graph"):
            OnnxModel(made.graph, one, made.unused)


def test_images_that_do_not_fit(exported: tuple[ModelSpec, Exported]) -> None:
    spec, made = exported
    model = OnnxModel(made.graph, as_arrays(built(spec).state_dict()), made.unused)
    images_NHWC = images_of(spec, 2)
    for wrong in (images_NHWC[:, :-1], images_NHWC[0], images_NHWC.astype(np.float32)):
        with pytest.raises(ValueError, match="cannot compute"):
            model(wrong)


@pytest.mark.parametrize("data", [b"", b"no graph"])
def test_bytes_that_are_no_graph(data: bytes) -> None:
    with pytest.raises(ValueError, match="ONNX Runtime cannot load the graph"):
        OnnxModel(data, {})


def test_a_graph_reads_no_file(tmp_path: Path) -> None:
    """A forged graph that names a file of this machine as its parameters, beside which the process runs."""
    (tmp_path / "secret").write_bytes(SECRET.tobytes())
    tensor = onnx.TensorProto(name="network.secret", data_type=onnx.TensorProto.FLOAT, dims=SECRET.shape)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret")
    tensor.external_data.add(key="length", value=str(SECRET.nbytes))
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["network.secret"], [name]) for name in ("logits", "probabilities")],
        "forged",
        [onnx.helper.make_tensor_value_info("images", onnx.TensorProto.UINT8, [None])],
        [
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, SECRET.shape)
            for name in ("logits", "probabilities")
        ],
        [tensor],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    with chdir(tmp_path), pytest.raises(ValueError, match="cannot load the graph"):
        OnnxModel(model.SerializeToString(), {})
