"""Collectives of a step, and the bytes that a rank sends in them."""

from collections.abc import Iterator
from typing import NamedTuple

from stream_learner.learning.admission import SPLITS
from stream_learner.learning.predicted import FACTS
from stream_learner.learning.ranks import SMALL_BYTES
from stream_learner.networks import ImageClassifier

INTEGER_BYTES = 8
FLOAT_BYTES = 4
SAVE_FLAGS = 4
"""Values on which ranks agree after each batch: three reasons to save or to wait, and whether to stop."""


class Collective(NamedTuple):
    """A collective by its `Parallel` method, and the bytes of one shard's rows and of each of their numbers."""

    method: str
    shard_bytes: int
    number_bytes: int = FLOAT_BYTES

    def sent_bytes(self, shards: int, ranks: int) -> int:
        """Return the bytes that each rank sends to the others. Gloo and NCCL gather around a ring."""
        if self.method == "gathered":
            return (ranks - 1) * (shards // ranks) * self.shard_bytes
        if not self.sliced(ranks):
            return (ranks - 1) * self.shard_bytes
        padded_bytes = self.shard_bytes + -self.shard_bytes % (ranks * self.number_bytes)
        return 2 * (ranks - 1) * padded_bytes // ranks

    def sliced(self, ranks: int) -> bool:
        """Return whether each rank adds one slice, so that the sum takes two rounds of messages."""
        return self.method == "summed" and ranks * self.shard_bytes > SMALL_BYTES


def of_step(network: ImageClassifier, samples_of_shard: int) -> list[Collective]:
    """Return the collectives of a batch with one step of the default strategy, in order.

    `samples_of_shard` is the largest number of training samples of a shard. No label is new, and no weight policy needs
    probabilities. A turn of the loop that closes no batch agrees once more.
    """
    return [
        Collective("gathered", INTEGER_BYTES),  # whether to close the batch
        Collective("gathered", INTEGER_BYTES * (2 + len(SPLITS))),  # new labels, records, samples of each split
        Collective("gathered", FACTS.itemsize * samples_of_shard),
        Collective("summed", FLOAT_BYTES * network.head.out_features),  # the strategy's sums by class
        Collective("summed", FLOAT_BYTES * sum(_sizes(network))),
        Collective("gathered", INTEGER_BYTES * SAVE_FLAGS),
    ]


def sent_bytes(collectives: list[Collective], shards: int, ranks: int) -> int:
    """Return the bytes that each rank sends to others in these collectives."""
    return sum(collective.sent_bytes(shards, ranks) for collective in collectives)


def _sizes(network: ImageClassifier) -> Iterator[int]:
    """Yield the numbers in a shard's row of sums: weight, samples, loss, and a flag and the values of each tensor."""
    yield 3
    for value in (*(p for p in network.parameters() if p.requires_grad), *network.buffers()):
        yield 1 + value.numel()
