"""A learner's random numbers, independent of all other random numbers in the process."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from stream_learner.networks.tensors import tensor


class Randomness:
    """The random generators for a learner's initial parameters, dropout, replay and augmentation.

    Dropout always draws from torch's default generators. So they have the learner's states while it computes.
    """

    def __init__(self, seed: int, device: torch.device):
        self._device = device
        with torch.random.fork_rng(self._gpus):
            torch.manual_seed(seed)
            self._states = self._current()

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Give torch's default generators the learner's states. At the end, restore the states from before."""
        outside = self._current()
        self._put(self._states)
        try:
            yield
        finally:
            self._states = self._current()
            self._put(outside)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the generators' states, each a uint8 tensor."""
        return dict(self._states)

    def load_state_dict(self, states: Mapping[str, Tensor]) -> None:
        """Restore the states from `state_dict`. The state of a device that is not used now is ignored.

        Raises ValueError or RuntimeError when a state is malformed.
        """
        for name, own in self._states.items():
            if name in states or name == "cpu":
                self._states[name] = tensor(states, name, torch.uint8, len(own)).clone()
        with torch.random.fork_rng(self._gpus):
            self._put(self._states)  # raises an error if a state is not valid

    @property
    def _gpus(self) -> list[torch.device]:
        return [self._device] if self._device.type == "cuda" else []

    def _current(self) -> dict[str, Tensor]:
        states = {"cpu": torch.get_rng_state()}
        for gpu in self._gpus:
            states["cuda"] = torch.cuda.get_rng_state(gpu)
        return states

    def _put(self, states: Mapping[str, Tensor]) -> None:
        torch.set_rng_state(states["cpu"])
        for gpu in self._gpus:
            torch.cuda.set_rng_state(states["cuda"], gpu)
