"""References to objects of the store, and lists of those that a manifest keeps."""

from typing import Annotated

import msgspec
from msgspec import Meta

from stream_learner.contract import keys
from stream_learner.contract.documents import Count, Digest, Sequence, Time
from stream_learner.contract.spans import Offset, Partition, Topic
from stream_learner.contract.window import Score


class Object(msgspec.Struct, frozen=True):
    """An object of the store: its key, size in bytes and digest (`sha256:` and 64 hex digits)."""

    key: Annotated[str, Meta(pattern=keys.PATTERN, max_length=300)]
    """Relative to `store`, and always under `<run_id>/`."""
    size: Count
    digest: Digest


class State(msgspec.Struct, frozen=True):
    """A saved state and the sequence of its checkpoint. `parts` are the objects that belong to the state, as indices
    into the manifest's `parts`."""

    sequence: Sequence
    object: Object
    parts: list[Annotated[int, Meta(ge=0, le=2**31 - 1)]] = []
    release: Sequence | None = None
    """Sequence of the last release when this state was saved, possibly its own sequence. The state of that release is
    needed to resume this state."""


class Chunk(msgspec.Struct, frozen=True):
    """Place of a chunk of the release in the weights topic. The release is all chunks, joined in the list's order."""

    topic: Topic
    partition: Partition
    offset: Offset


class Published(msgspec.Struct, frozen=True):
    """An object of a release, and its chunks in the weights topic. `chunks` is empty if the topic does not hold it."""

    object: Object
    chunks: list[Chunk]


class Earlier(msgspec.Struct, frozen=True, kw_only=True):
    """An earlier release whose objects are still in the store."""

    sequence: Sequence
    created_at: Time
    object: Object
    evaluation: Object
    canary: Object
    onnx: Object | None = None
    """The graph, if the release has one."""
    manifest: Object | None = None
    """The manifest of its checkpoint, which describes the release in full; see `Release.manifest`."""
    classes: Count
    """Number of outputs."""
    validation: Score
    test: Score

    def objects(self) -> list[Object]:
        """Return the release's objects."""
        optional = (found for found in (self.onnx, self.manifest) if found)
        return [self.object, self.evaluation, self.canary, *optional]
