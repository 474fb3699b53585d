"""Random numbers of a learner, independent of all others in its process."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from stream_learner.networks.tensors import tensor


class Randomness:
    """The generators behind a learner's weights, dropout, replay and augmentation.

    Dropout takes no generator of its own, so torch's default generators have the learner's states while it computes.
    """

    def __init__(self, seed: int, device: torch.device):
        self._device = device
        with torch.random.fork_rng(self._gpus):
            torch.manual_seed(seed)
            self._states = self._current()

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Draw from the learner's generators. Other generators are not affected."""
        outside = self._current()
        self._put(self._states)
        try:
            yield
        finally:
            self._states = self._current()
            self._put(outside)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the states, uint8 each."""
        return dict(self._states)

    def load_state_dict(self, states: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave; the state of a device that is not used now is ignored.

        Raises ValueError when it is not that.
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
