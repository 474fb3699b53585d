"""The input of a rank: which shard reads which partition, and the sources of the rank's shards."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from stream_learner.config import Settings
from stream_learner.contract.spans import Positions, each
from stream_learner.streams.source import Source

T = TypeVar("T")


def shard_of(settings: Settings, topic: str, partition: int) -> int:
    """Return the shard that reads a partition.

    It depends only on the order of `input.topics` and on `run.shards`, so all ranks agree on it, and added partitions
    move no other partition. The partitions of a topic go to the shards in turn. Each topic begins at another shard.
    """
    return (settings.topics_read.index(topic) + partition) % settings.run.shards


class Inputs:
    """The sources of a rank's shards, seen as one."""

    def __init__(self, sources: Sequence[Source]):
        self.sources = sources

    @property
    def positions(self) -> Positions:
        """Next offset to fetch, for every partition that the rank reads."""
        return joined(source.positions for source in self.sources)

    def starts(self) -> Positions:
        """Return each partition's first offset that the brokers still hold, by its last fetch."""
        return joined(source.starts() for source in self.sources)

    def ends(self) -> Positions:
        """Return each partition's end offset, by its last fetch."""
        return joined(source.ends() for source in self.sources)

    def oldest_ms(self, topic: str, partition: int) -> int | None:
        """Return the timestamp of the partition's next waiting record, or of its last record if none waits."""
        times = (source.oldest_ms(topic, partition) for source in self.sources)
        return next((time for time in times if time is not None), None)

    @property
    def unanswered(self) -> tuple[str, float]:
        """Partition with the oldest unanswered fetch, and its age in seconds; ("", 0) if there is none."""
        return max((source.unanswered for source in self.sources), key=lambda found: found[1])


def joined(parts: Iterable[Mapping[str, Mapping[int, T]]]) -> dict[str, dict[int, T]]:
    """Return the positions or spans of all parts. No two parts hold the same partition."""
    everything: dict[str, dict[int, T]] = {}
    for part in parts:
        for topic, partition, value in each(part):
            everything.setdefault(topic, {})[partition] = value
    return everything
