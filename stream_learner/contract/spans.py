"""Positions (the next offset of each partition) and spans (half-open offset ranges).

Both are nested by topic, then by partition, as in manifests and windows.

A message with rows, an envelope, is behind the position only when all of its rows are. While some are, the position is
the message's offset, and the number of these rows is kept beside it.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, NamedTuple, TypeVar

from msgspec import Meta

from stream_learner.contract.documents import END, Sequence

T = TypeVar("T")

Topic = Annotated[str, Meta(pattern="^[a-zA-Z0-9._-]{1,249}" + END, max_length=249)]
Partition = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Offset = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class Span(NamedTuple):
    """Half-open range of one partition's offsets: it includes `start` but not `end`. JSON: `[start, end]`."""

    start: Offset
    end: Offset


Positions = dict[Topic, dict[Partition, Offset]]
Spans = dict[Topic, dict[Partition, Span]]
# Number of rows that were read of the message at the position, at least 1, for partitions that are inside a message.
RowsRead = dict[Topic, dict[Partition, Sequence]]
# Position of each partition, and the number of rows that were read of the message there, 0 if none was.
RowPositions = dict[Topic, dict[Partition, tuple[Offset, int]]]
# Several ranges of each partition.
Stretches = dict[Topic, dict[Partition, list[Span]]]


def extend(spans: Spans, topic: str, partition: int, start: int, end: int) -> None:
    """Extend the partition's span to `end`. The span of a new partition begins at `start`."""
    partitions = spans.setdefault(topic, {})
    known = partitions.get(partition)
    partitions[partition] = Span(known.start if known else start, end)


def extend_all(spans: Spans, more: Spans) -> None:
    """Extend `spans` by `more`, which must continue them.

    Raises ValueError otherwise: a span that starts elsewhere would mean that a record was lost or read twice.
    """
    for topic, partition, span in each(more):
        known = spans.get(topic, {}).get(partition)
        if known and known.end != span.start:
            raise ValueError(f"{topic}[{partition}]: offset {known.end} comes next, not {span.start}")
        extend(spans, topic, partition, span.start, span.end)


def advance(positions: Positions, spans: Spans) -> None:
    """Move positions to the ends of the spans."""
    for topic, partition, span in each(spans):
        positions.setdefault(topic, {})[partition] = span.end


def follow(spans: Spans, rows: Spans, positions: Positions, rows_read: RowsRead) -> None:
    """Move positions to the ends of the spans, which must begin there.

    `rows` are ranges of rows: the rows of the message at the start of the partition's span that were read before, and
    the rows of the message at its end that are read now. A partition that `rows` lacks begins and ends with a whole
    message. Raises ValueError when a span starts elsewhere.
    """
    for topic, partition, span in each(spans):
        inside = rows.get(topic, {}).get(partition, Span(0, 0))
        place = positions.get(topic, {}).get(partition, span.start), rows_read.get(topic, {}).get(partition, 0)
        if place != (span.start, inside.start):
            raise ValueError(
                f"{topic}[{partition}]: offset {place[0]} comes next, not {span.start} (rows read of it: {place[1]}, "
                f"not {inside.start})"
            )
        if inside.end:
            rows_read.setdefault(topic, {})[partition] = inside.end
        elif inside.start:
            del rows_read[topic][partition]
            if not rows_read[topic]:
                del rows_read[topic]
    advance(positions, spans)


def row_positions(positions: Positions, rows_read: RowsRead) -> RowPositions:
    """Join positions and the rows that were read of the messages there."""
    return {
        topic: {partition: (offset, rows_read.get(topic, {}).get(partition, 0)) for partition, offset in ps.items()}
        for topic, ps in positions.items()
    }


def describe_position(offset: int, rows: int) -> str:
    """Describe a position for people, such as "17", or "17 (after 3 rows)" inside a message."""
    return f"{offset} (after {rows} rows)" if rows else str(offset)


def offsets_in(spans: Spans) -> int:
    """Return the number of offsets in spans."""
    return sum(span.end - span.start for _, _, span in each(spans))


def offsets_in_all(stretches: Stretches) -> int:
    """Return the number of offsets in several ranges of each partition."""
    return sum(span.end - span.start for _, _, spans in each(stretches) for span in spans)


def between(start: Positions, end: Positions) -> Spans:
    """Return the offsets from `start` up to `end`, for the partitions that both hold."""
    spans: Spans = {}
    for topic, partition, first in each(start):
        stop = end.get(topic, {}).get(partition, first)
        if first < stop:
            spans.setdefault(topic, {})[partition] = Span(first, stop)
    return spans


def each(places: Mapping[str, Mapping[int, T]]) -> Iterator[tuple[str, int, T]]:
    """Yield (topic, partition, span) of spans, or (topic, partition, offset) of positions, in sorted order."""
    for topic in sorted(places):
        for partition in sorted(places[topic]):
            yield topic, partition, places[topic][partition]
