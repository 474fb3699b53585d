"""Load the pretrained weights of a body from a safetensors file."""

from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from stream_learner.errors import UsageError
from stream_learner.networks.classifier import ImageClassifier

# Files from old versions of PyTorch do not have this buffer of batch normalisation, and no computation here uses it.
COUNTER = "num_batches_tracked"


@torch.no_grad()
def load_body(network: ImageClassifier, path: Path) -> None:
    """Copy the file's tensors into the network's body.

    The tensors are named as in the state dict of the network (`body.conv1.weight`), or of the body alone
    (`conv1.weight`), as in torchvision and timm. A head in the file is ignored. Raises UsageError that names the first
    tensor that is missing or has another shape, or the layers that the network does not have.
    """
    try:
        file = safetensors.torch.load(read(path))
    except SafetensorError as error:
        raise UsageError(f"model.weights: {path} is not a safetensors file: {error}") from None
    body = network.body.state_dict()
    prefix = "body." if any(f"body.{name}" in file for name in body) else ""
    for name, tensor in body.items():
        if prefix + name not in file:
            if name.endswith(COUNTER):
                continue
            raise UsageError(
                f"model.weights: {path} has no {prefix}{name}, which this model.name needs; it has "
                f"{', '.join(sorted(file)[:3])}"
            )
        found = file[prefix + name]
        if found.shape != tensor.shape:
            raise UsageError(
                f"model.weights: {prefix}{name} is {list(found.shape)} in {path}, but this model.name, model.height, "
                f"model.width and model.channels need {list(tensor.shape)}"
            )
        tensor.copy_(found)
    surplus = [name for name in file if name.startswith(prefix) and name.removeprefix(prefix) not in body]
    # In the file of a whole network, the head is not below `body.`. In other files, one extra layer may be the head.
    layers = sorted({name.rpartition(".")[0] for name in surplus})
    if len(layers) > (0 if prefix else 1):
        raise UsageError(f"model.weights: {path} has layers that this model.name lacks: {', '.join(layers[:3])}")


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"model.weights: cannot read {path}: {error.strerror}") from None
