"""A learner's random numbers, independent of all other random numbers in the process."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from stream_learner.learning.parallel import Parallel
from stream_learner.networks.tensors import tensor

States = dict[str, Tensor]
"""States of the generators, by the type of their device."""


class Randomness:
    """The random generators for a learner's initial parameters, dropout, replay and augmentation.

    Dropout always draws from torch's default generators. So they have the learner's states while it computes.

    The common states are the same on every rank. They give initial parameters. Each shard has states of its own, for
    all that is drawn for its samples. With one shard, the common states are also the shard's states.
    """

    def __init__(self, seed: int, device: torch.device, parallel: Parallel):
        self._device = device
        with torch.random.fork_rng(self._gpus):
            self._states = self._seeded(seed)
            local = parallel.local if parallel.shards > 1 else ()
            self._of_shards = [self._seeded(_seed_of_shard(seed, shard)) for shard in local]

    def _seeded(self, seed: int) -> States:
        torch.manual_seed(seed)
        return self._current()

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

    @contextmanager
    def of_shard(self, shard: int) -> Iterator[None]:
        """Give torch's default generators the states of a local shard. Use it inside `drawing()`."""
        if not self._of_shards:
            yield
            return
        common = self._current()
        self._put(self._of_shards[shard])
        try:
            yield
        finally:
            self._of_shards[shard] = self._current()
            self._put(common)

    def state_dict(self) -> States:
        """Return the common states, each a uint8 tensor."""
        return dict(self._states)

    def load_state_dict(self, states: Mapping[str, Tensor]) -> None:
        """Restore the common states from `state_dict`. The state of a device that is not used now is ignored.

        Raises ValueError or RuntimeError when a state is malformed.
        """
        self._load(self._states, states)

    def shard_state_dict(self, shard: int) -> States:
        """Return the states of a local shard. Call it only with several shards."""
        return dict(self._of_shards[shard])

    def load_shard_state_dict(self, shard: int, states: Mapping[str, Tensor]) -> None:
        """Restore the states from `shard_state_dict`, as `load_state_dict` does."""
        self._load(self._of_shards[shard], states)

    def _load(self, own: States, states: Mapping[str, Tensor]) -> None:
        for name, state in own.items():
            if name in states or name == "cpu":
                own[name] = tensor(states, name, torch.uint8, len(state)).clone()
        with torch.random.fork_rng(self._gpus):
            self._put(own)  # raises an error if a state is not valid

    @property
    def _gpus(self) -> list[torch.device]:
        return [self._device] if self._device.type == "cuda" else []

    def _current(self) -> States:
        states = {"cpu": torch.get_rng_state()}
        for gpu in self._gpus:
            states["cuda"] = torch.cuda.get_rng_state(gpu)
        return states

    def _put(self, states: Mapping[str, Tensor]) -> None:
        torch.set_rng_state(states["cpu"])
        for gpu in self._gpus:
            torch.cuda.set_rng_state(states["cuda"], gpu)


def _seed_of_shard(seed: int, shard: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{shard}".encode(), digest_size=8).digest(), "big") >> 1
