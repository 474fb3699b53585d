"""The gang of a run: processes, called ranks, that learn its shards together and end together.

Each process finds its place in the environment variables of torchrun. `run/launcher.py`, torchrun, or the manifest of a
cluster sets them.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from stream_learner.errors import UsageError

LISTENER = "MASTER_LISTEN_FD"
"""Environment variable for rank 0: file descriptor of the inherited socket that listens on MASTER_PORT."""


@dataclass(frozen=True)
class Rank:
    """Place of this process in the gang. The default is a process alone."""

    index: int = 0
    count: int = 1
    local: int = 0
    """Index among the ranks on this host."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read RANK, WORLD_SIZE and LOCAL_RANK. Raises UsageError."""
        if "RANK" not in environment and "WORLD_SIZE" not in environment:
            return cls()
        try:
            rank = cls(int(environment["RANK"]), int(environment["WORLD_SIZE"]), int(environment.get("LOCAL_RANK", 0)))
        except (KeyError, ValueError):
            raise UsageError(
                "of RANK and WORLD_SIZE in the environment, one is missing or is not a number; set both or none"
            ) from None
        if not 0 <= rank.index < rank.count:
            raise UsageError(
                f"RANK = {rank.index} in the environment is not from 0 to WORLD_SIZE - 1 = {rank.count - 1}"
            )
        if rank.count > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
            raise UsageError(
                "WORLD_SIZE is in the environment, but MASTER_ADDR or MASTER_PORT is not; set them to the host of rank "
                "0 and a free port there"
            )
        return rank


def check_ranks(ranks: int, shards: int) -> None:
    """Raise UsageError if the ranks cannot carry equal numbers of shards."""
    if shards % ranks:
        raise UsageError(
            f"{ranks} ranks cannot share run.shards = {shards} equally. Use a number of ranks that divides run.shards, "
            "or start a new run with more shards"
        )
