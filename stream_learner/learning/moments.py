"""An optimizer's moments in a state dict. They are named `INDEX/NAME`, where INDEX is the index of the parameter."""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stream_learner.learning.muon import Muon
from stream_learner.learning.state_dict import copied
from stream_learner.networks.tensors import tensor

MOMENTUM = frozenset({"momentum_buffer"})  # of SGD, and of Muon's matrices
ADAM = frozenset({"step", "exp_avg", "exp_avg_sq"})


def moments(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return copies of the moments, on the CPU."""
    return {
        f"{index}/{name}": copied(moment)
        for index, parameter in enumerate(optimizer.param_groups[0]["params"])
        for name, moment in optimizer.state.get(parameter, {}).items()
        if moment is not None
    }


@torch.no_grad()
def load_moments(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Set the moments of a new optimizer. Raises ValueError when they do not fit the optimizer or its parameters."""
    names_of: dict[str, set[str]] = {}
    for key in tensors:
        index, _, name = key.partition("/")
        names_of.setdefault(index, set()).add(name)
    parameters = {str(i): p for i, p in enumerate(optimizer.param_groups[0]["params"])}
    if surplus := names_of.keys() - parameters.keys():
        raise ValueError(f"moments of parameter {min(surplus)} belong to another network")
    for index, names in names_of.items():
        parameter = parameters[index]
        if names != (wanted := _names(optimizer, parameter)):
            raise ValueError(f"parameter {index} has {', '.join(sorted(names))}, not {', '.join(sorted(wanted))}")
        for name in sorted(names):
            shape = () if name == "step" else parameter.shape
            found = tensor(tensors, f"{index}/{name}", torch.float32, *shape)
            if name in ("step", "exp_avg_sq") and (found < 0).any():
                raise ValueError(f"tensor {index}/{name} holds negative numbers")
            # Moments take their parameter's device and memory layout. Adam's step count is a scalar.
            moment = torch.empty_like(parameter) if shape else torch.empty_like(found, device=parameter.device)
            optimizer.state[parameter][name] = moment.copy_(found)


def _names(optimizer: Optimizer, parameter: nn.Parameter) -> frozenset[str]:
    """Return the names of the moments that the optimizer keeps for a parameter."""
    if isinstance(optimizer, Muon):
        return MOMENTUM if any(parameter is matrix for matrix in optimizer.matrices) else ADAM
    return MOMENTUM if isinstance(optimizer, torch.optim.SGD) else ADAM
