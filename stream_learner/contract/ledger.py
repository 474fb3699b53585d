"""The ledger: the offsets of each batch, in the order in which they were read."""

import base64
import zlib
from collections.abc import Iterator
from itertools import repeat
from typing import NamedTuple

import msgspec

from stream_learner.contract import documents
from stream_learner.contract.documents import Count
from stream_learner.contract.spans import Partition, Spans, Topic

# Limit of a decompressed ledger. Real ledgers are far smaller. Without a limit, a few compressed bytes could fill the
# memory.
MAX_JSON_BYTES = 64 * 1024 * 1024


class Piece(NamedTuple):
    """Consecutive offsets of one partition that were read together, up to `end`.

    A piece begins where the partition's previous piece ends. `rows` is the number of rows that were read of the message
    at `end`, 0 if none was. They include the rows in earlier pieces.
    """

    topic: str
    partition: int
    end: int
    rows: int = 0


class Ledger(msgspec.Struct, frozen=True, omit_defaults=True):
    """The offsets of each batch since the previous manifest, in the order in which they were read.

    Reading the offsets again in this order gives the same batches. Learning these batches from the previous state gives
    the same state.
    """

    batches: Count
    partitions: list[tuple[Topic, Partition]]
    """Topic and partition, by index."""
    pieces: str
    """Base64 of zlib (RFC 1950) of a JSON array of integers. For each batch: the number of its pieces, then for each
    piece the index of its partition and the number of its offsets. A partition's first piece begins where the
    partition's span begins. Each later piece begins where the partition's previous piece ends."""
    rows: str = ""
    """In the same encoding: for each piece, the number of rows that were read of the message at its end, 0 if none was.
    Left out if no batch ended inside a message."""


def encode(batches: list[list[Piece]], spans: Spans) -> Ledger:
    """Encode the pieces of batches. `spans` are the offsets that the batches cover together."""
    at = {(topic, partition): span.start for topic, ps in spans.items() for partition, span in ps.items()}
    index = {place: i for i, place in enumerate(at)}
    numbers: list[int] = []
    rows = [piece.rows for batch in batches for piece in batch]
    for batch in batches:
        numbers.append(len(batch))
        for topic, partition, end, _ in batch:
            numbers += index[topic, partition], end - at[topic, partition]
            at[topic, partition] = end
    return Ledger(len(batches), list(index), _compressed(numbers), _compressed(rows) if any(rows) else "")


def decode(ledger: Ledger, spans: Spans) -> Iterator[list[Piece]]:
    """Yield the pieces of each batch. Raises ValueError when they do not match `spans`, the spans of the manifest."""
    at = {(topic, partition): span.start for topic, ps in spans.items() for partition, span in ps.items()}
    try:
        numbers = iter(_decompressed(ledger.pieces))
        rows = iter(_decompressed(ledger.rows)) if ledger.rows else repeat(0)
        for _ in range(ledger.batches):
            batch = []
            for _ in range(next(numbers)):
                place = ledger.partitions[next(numbers)]
                at[place] += next(numbers)
                batch.append(Piece(*place, at[place], next(rows)))
            yield batch
    except (ValueError, zlib.error, IndexError, KeyError, StopIteration) as error:
        raise ValueError(f"the ledger is damaged: {error}") from None
    if at != {(topic, partition): span.end for topic, ps in spans.items() for partition, span in ps.items()}:
        raise ValueError("the ledger does not end where the spans end")


def _compressed(numbers: list[int]) -> str:
    return base64.b64encode(zlib.compress(msgspec.json.encode(numbers))).decode()


def _decompressed(text: str) -> list[int]:
    """Decompress numbers, from at most `MAX_JSON_BYTES` of JSON. Raises ValueError, zlib.error."""
    data = zlib.decompressobj().decompress(base64.b64decode(text), MAX_JSON_BYTES + 1)
    return documents.decode(data, list[Count], MAX_JSON_BYTES)
