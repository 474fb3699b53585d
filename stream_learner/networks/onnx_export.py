"""Export a network as an ONNX graph without parameters, in a separate process.

`python -m stream_learner.networks.onnx_export` reads a ModelSpec as JSON and writes an `Exported` as MessagePack. The
process takes 5 to 20 s and up to 2 GB.
"""

import os
import sys
from contextlib import suppress
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn

from stream_learner import networks
from stream_learner.contract.manifest import ModelSpec
from stream_learner.errors import StreamLearnerError
from stream_learner.inference.onnx import INPUT, OUTPUTS, PREFIX
from stream_learner.networks import ImageClassifier

NICENESS = 19
MAX_BATCH = 65_536
# ONNX requires a file name for each tensor outside the graph. This file does not exist.
NOWHERE = "parameters"


class Exported(msgspec.Struct):
    """An ONNX graph with the names of the state dict's tensors that the graph lacks, or the reason for a failed export.

    See `contract.manifest.OnnxGraph`.
    """

    graph: bytes = b""
    unused: list[str] = []
    failure: str | None = None


class _Served(nn.Module):
    """Wrap the network in an outer module, so that the names of its tensors begin with PREFIX."""

    def __init__(self, network: ImageClassifier):
        super().__init__()
        self.network = network

    def forward(self, images_NHWC: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(images_NHWC)
        return logits, logits.softmax(1)


def export(network: ImageClassifier, height: int, width: int, channels: int) -> Exported:
    """Export a network in evaluation mode. The graph takes any number of images up to 65,536.

    Raises ImportError without onnxscript, and any error of torch for a network that cannot be exported.
    """
    import onnx_ir

    # The example has two images, because torch treats a dimension of length 1 as constant.
    example_NHWC = torch.zeros(2, height, width, channels, dtype=torch.uint8)
    program = torch.onnx.export(
        _Served(network).eval(),
        (example_NHWC,),
        dynamo=True,
        optimize=False,  # the optimizer would fold parameters into constants
        verbose=False,
        input_names=[INPUT],
        output_names=OUTPUTS,
        dynamic_shapes={"images_NHWC": {0: torch.export.Dim("N", min=1, max=MAX_BATCH)}},
    )
    assert program is not None
    model = program.model
    initializers = model.graph.initializers
    unused = []
    for name in network.state_dict():
        value = initializers.get(PREFIX + name)
        if value is None or value.const_value is None:
            unused.append(name)
            continue
        tensor = value.const_value
        value.const_value = onnx_ir.ExternalTensor(
            NOWHERE, 0, tensor.nbytes, tensor.dtype, shape=onnx_ir.Shape(tensor.shape.numpy()), name=PREFIX + name
        )
    _forget_sources(model)
    return Exported(onnx_ir.to_proto(model).SerializeToString(deterministic=True), unused)


def _forget_sources(model) -> None:
    """Remove the notes on source code, because they name files of this machine."""
    nodes = list(model.graph.all_nodes())
    for node in nodes:
        node.doc_string = None
    values = [*model.graph.inputs, *model.graph.initializers.values(), *(out for node in nodes for out in node.outputs)]
    for noted in (model, model.graph, *nodes, *values):
        noted.metadata_props.clear()


def main() -> None:
    os.nice(NICENESS)
    # When memory runs out, the kernel ends this process and not the worker.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    torch.set_num_threads(1)
    # Libraries print to standard output during an export, so send their output to standard error.
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        spec = msgspec.json.decode(sys.stdin.buffer.read(), type=ModelSpec)
        size = spec.arguments.height, spec.arguments.width, spec.arguments.channels
        exported = export(networks.build(spec, own=spec.name).eval(), *size)
    except ImportError as error:
        exported = Exported(failure=f'{error}: pip install "stream-learner[worker]"')
    except StreamLearnerError as error:
        exported = Exported(failure=str(error))
    except Exception as error:  # noqa: BLE001 (the errors of torch's exporter have no common class)
        exported = Exported(failure=f"PyTorch cannot export the network: {_first_line(error)}")
    with answer:
        answer.write(msgspec.msgpack.encode(exported))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:500]


if __name__ == "__main__":
    main()
