"""State dicts, which `state_dict()` returns and `load_state_dict()` restores, as in torch's modules.

A component's state dict maps names to tensors and to JSON values. The learner's state dict maps the name of each
component to the component's state dict. It also maps other names to JSON values.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

StateDict = Mapping[str, Any]


def split(state: StateDict) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split a learner's state dict into its tensors, named `component/name`, and a JSON document with the rest."""
    tensors: dict[str, Tensor] = {}
    document: dict[str, Any] = {}
    for component, value in state.items():
        if not isinstance(value, dict):
            document[component] = value
            continue
        own = tensors_of(value)
        tensors |= prefixed(component, own)
        if len(own) < len(value) or not own:
            document[component] = {name: v for name, v in value.items() if name not in own}
    return tensors, document


def join(tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the learner's state dict from the two results of `split`."""
    state = {name: dict(value) if isinstance(value, dict) else value for name, value in document.items()}
    for name, tensor in tensors.items():
        component, _, rest = name.partition("/")
        of_component = state.setdefault(component, {})
        if isinstance(of_component, dict):  # otherwise the component refuses its state when it is loaded
            of_component[rest] = tensor
    return state


def tensors_of(state: StateDict) -> dict[str, Tensor]:
    """Return the tensors of a component's state dict."""
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def prefixed(prefix: str, state: StateDict) -> dict[str, Any]:
    """Return the entries with `prefix/` in front of each name."""
    return {f"{prefix}/{name}": value for name, value in state.items()}


def under(prefix: str, state: StateDict) -> dict[str, Any]:
    """Return the entries whose names begin with `prefix/`, and remove `prefix/` from the names."""
    return {name.removeprefix(prefix + "/"): v for name, v in state.items() if name.startswith(prefix + "/")}


def copied(tensor: Tensor) -> Tensor:
    """Return a contiguous copy on the CPU."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous copies on the CPU."""
    return {name: copied(tensor) for name, tensor in tensors.items()}
