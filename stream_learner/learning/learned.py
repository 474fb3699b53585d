"""Result of learning samples."""

from dataclasses import dataclass, field
from typing import NamedTuple

from stream_learner.contract.figures import Figures
from stream_learner.contract.vocabulary import Reason
from stream_learner.learning.drift import Change


class Refused(NamedTuple):
    """A sample that could not be learned, and why.

    `sample` is its index in the call of `Learner.learn`. After `Learner.learn_shards`, it is the index in the list of a
    local shard, and `shard` is the index of that list.
    """

    sample: int
    reason: Reason
    message: str
    shard: int = 0


@dataclass(slots=True)
class Learned(Figures):
    """Figures of one batch, and the samples that were refused.

    `refused` are samples of the local shards. All other figures cover all shards. `drifts` are the rises of the
    prequential error that the drift detector found.
    """

    refused: list[Refused] = field(default_factory=list)
    drifts: list[Change] = field(default_factory=list)
