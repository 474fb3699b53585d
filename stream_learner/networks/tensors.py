"""Check the tensors of states and releases before use, because others may write to the store."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

STORED = {
    torch.float64,
    torch.float32,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
}
"""Types of tensors that a state may hold. NumPy has the same types."""


def as_tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Return NumPy arrays as tensors that share their memory."""
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def as_arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Return contiguous tensors on the CPU as NumPy arrays that share their memory."""
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def tensor(
    tensors: Mapping[str, Tensor], name: str, dtype: torch.dtype, *shape: int | None, finite: bool = True
) -> Tensor:
    """Return the tensor called `name`, after a check. None in `shape` stands for any length.

    Raises ValueError when the tensor is missing, has another dtype or shape, or holds a number that is not finite. If
    `finite` is false, such numbers are allowed.
    """
    found = tensors.get(name)
    wanted = f"{dtype} [{', '.join('any' if length is None else str(length) for length in shape)}]"
    if found is None:
        raise ValueError(f"tensor {name}, {wanted}, is missing")
    fits = found.ndim == len(shape) and all(w in (None, n) for n, w in zip(found.shape, shape, strict=True))
    if found.dtype != dtype or not fits:
        raise ValueError(f"tensor {name} is {found.dtype} {list(found.shape)}, not {wanted}")
    if finite and not found.isfinite().all():
        raise ValueError(f"tensor {name} holds numbers that are not finite")
    return found


def within(found: Tensor, name: str, low: int, high: int) -> Tensor:
    """Return the tensor. Raises ValueError when an element is not in low..high - 1."""
    if found.numel() and not (low <= int(found.min()) and int(found.max()) < high):
        raise ValueError(f"tensor {name} holds numbers outside {low}..{high - 1}")
    return found


def load_parameters(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy parameters and buffers into a network. Raises ValueError that names the first tensor that does not fit."""
    wanted = network.state_dict()
    if surplus := tensors.keys() - wanted.keys():
        raise ValueError(f"tensor {min(surplus)} belongs to another network")
    for name, own in wanted.items():
        tensor(tensors, name, own.dtype, *own.shape, finite=False)
    network.load_state_dict(tensors)
    if not is_finite(network):
        raise ValueError("the network has parameters or buffers that are not finite")


def is_finite(network: nn.Module) -> bool:
    """Return whether all parameters are finite and no buffer holds a NaN.

    A buffer may hold infinities on purpose, such as the mask of an attention layer.
    """
    return all(p.isfinite().all() for p in network.parameters()) and not any(b.isnan().any() for b in network.buffers())
