"""A learner's saved state."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import Struct

from stream_learner.contract.vocabulary import Label
from stream_learner.learning.state_dict import StateDict
from stream_learner.learning.stored import Count


class Stored(Struct):
    """Fields of a saved state. The identity, the memories and other fields of the classes are read elsewhere."""

    labels: list[Label]
    trainer: dict[str, Any]
    weights: dict[str, Any]
    prequential: dict[str, Any]
    drift: dict[str, Any]
    releases: dict[str, Any]
    rng: dict[str, Any]
    records: Count
    non_finite_in_a_row: Count


@dataclass(frozen=True)
class Saved:
    """A state to continue from.

    `state` and `parts` are the `Learner.state_dict()` and `Learner.parts` that were saved. `released` is the state that
    was saved with the last release, or None. `shards` are the saved `Learner.shard_states()` of the shards that are
    local now.
    """

    state: StateDict
    parts: Mapping[str, bytes]
    released: StateDict | None = None
    shards: Sequence[StateDict] = ()
