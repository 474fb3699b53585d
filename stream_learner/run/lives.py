"""Detect records that end the process, and set them aside.

A life is one process of the active worker. `<run.id>/lives.json` counts the lives since the last commit. If a run has
several ranks, each other rank has an object of its own, named after its first shard. A rank continues the notes on the
records of its shards, even if another number of ranks made them. A life that the program itself ended is not a death
and does not count. After a death, the next life is careful until its first commit: before it decodes or learns records,
it notes their places in the object. After three deaths, a record at which both of the last two careful lives died is
set aside. If both lives died while learning the same batch, the next life learns the records of this batch one by one.
If no death came before a life, the life makes only two small writes.

The object need not be exact. A frozen worker that was replaced may overwrite the object. Then only a count is lost.
"""

import threading
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import msgspec
import structlog
from msgspec import Meta

from stream_learner.checkpoints.store import Store
from stream_learner.config import MIB, Settings
from stream_learner.contract import documents, keys
from stream_learner.contract.documents import Count
from stream_learner.contract.spans import Positions
from stream_learner.contract.vocabulary import Reason
from stream_learner.errors import FencedError, StateError, StoreError, StreamLearnerError
from stream_learner.formats.record import Place, Record, RejectError, RetryLaterError, Rows, Sample
from stream_learner.run.batches import Decode
from stream_learner.run.inputs import shard_of

log = structlog.get_logger()

DEATHS = 3
NOTE_S = 2.0
# Enough for the places of three batches and for the places of the records that were set aside.
MAX_BYTES = 16 * MIB
MAX_SET_ASIDE = 1_000


class State(msgspec.Struct):
    """Contents of lives.json."""

    lives: Count = 0
    """Number of lives since the last commit, including the current life. All earlier lives have died."""
    suspects: list[Place] = []
    """Records that the current life is decoding or learning, if this life is careful."""
    died_at: Annotated[list[list[Place]], Meta(max_length=2)] = []
    """The suspects of the last two lives that died."""
    set_aside: Annotated[list[Place], Meta(max_length=MAX_SET_ASIDE)] = []
    """Records to reject without decoding them. A record leaves the list when a commit's position is past it."""


class Lives:
    """The current life of a run's active worker, and the notes on earlier lives.

    If the store cannot be written, a warning is logged and the life is no longer careful.
    """

    def __init__(self, store: Store, settings: Settings, shards: Sequence[int] = (0,)):
        """Read the notes on the records of `shards`, which this rank carries. Write nothing.

        Raises StoreError when the store cannot be read.
        """
        self._store = store
        self._key = keys.lives(settings.run.id, shards[0])
        self._lock = threading.Lock()  # commits happen on the publisher's thread
        self._left: list[str] = []  # objects of ranks that the run no longer has
        deaths, died_at, set_aside = self._earlier(settings, shards)
        again = list({*died_at[0]} & {*died_at[1]}) if deaths >= DEATHS else []
        if len(died_at[0]) == len(died_at[1]) == len(again) == 1:
            deaths, died_at, set_aside, again = 0, [], [*set_aside, *again], []
        set_aside = set_aside[-MAX_SET_ASIDE:]
        self.alone = frozenset(again)
        """Records to learn one by one, each in its own batch."""
        self._state = State(deaths + 1, [], died_at, set_aside)
        self.careful = deaths > 0
        """Whether this life notes the records that it processes. A careful life does not learn while it publishes."""
        if self.careful:
            log.warning(
                "the run's last worker died; this worker notes the records that it processes until its first save",
                deaths=deaths,
            )
        for place in set_aside:
            log.warning(
                "a record ended the process repeatedly, so it is set aside as a dead letter (poison)",
                **{name: value for name, value in place._asdict().items() if value is not None},
            )
        if self.alone:
            log.warning("the process died repeatedly while learning the same records, so they are learned one by one")

    def _earlier(self, settings: Settings, shards: Sequence[int]) -> tuple[int, list[list[Place]], list[Place]]:
        """Return the number of deaths, the suspects of the last two, and the records that were set aside.

        Leave out records of other shards. Any number of ranks may have carried these shards.
        """

        def own(places: list[Place]) -> list[Place]:
            topics = settings.topics_read
            return [p for p in places if p.topic in topics and shard_of(settings, p.topic, p.partition) in shards]

        deaths = 0
        died_at: list[list[Place]] = [[], []]
        set_aside: list[Place] = []
        # The first shard of a rank is the index of each of its shards with some of the lowest bits cleared.
        first_shards = {*shards, *(shards[0] >> k << k for k in range(settings.run.shards.bit_length()))}
        for shard in sorted(first_shards):
            key = keys.lives(settings.run.id, shard)
            if (noted := self._read(key)) is None:
                continue
            suspects = [own(places) for places in [[], *noted.died_at, noted.suspects][-2:]]
            aside = own(noted.set_aside)
            if shard in shards or aside or any(suspects):  # otherwise it is the object of another rank
                deaths = max(deaths, noted.lives)
            if shard in shards[1:]:
                self._left.append(key)
            died_at = [before + more for before, more in zip(died_at, suspects, strict=True)]
            set_aside += aside
        return deaths, died_at, set_aside

    def guarded(self, decode: Decode) -> Decode:
        """Wrap `decode` to reject records that are set aside. In a careful life, also note which record is decoded."""

        def guarded(record: Record) -> Sample | Rows | None:
            with self.suspecting([record.at]):
                return decode(record)

        return setting_aside(frozenset(self._state.set_aside), guarded if self.careful else decode)

    @contextmanager
    def suspecting(self, places: list[Place]) -> Iterator[None]:
        """Note, in a careful life, that these records are being processed."""
        if not self.careful or not places:
            yield
            return
        self._suspect(places)
        try:
            yield
        except (RejectError, RetryLaterError):
            self._suspect([])
            raise
        self._suspect([])

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note that this life begins, and an exit that the program chose: a normal end, or a StreamLearnerError.

        Any other end is a death. Enter this once all ranks have read the notes, because it drops notes for other ranks.
        """
        with self._lock:
            self._write()
        self._delete(self._left)
        try:
            yield
        except FencedError:  # the object now belongs to the worker that took over
            raise
        except StreamLearnerError:
            self._end()
            raise
        self._end()

    def ended_with_others(self) -> None:
        """Note that this process ends only because another rank did. Give up soon if the store does not answer."""
        noting = threading.Thread(target=self._end, daemon=True)
        noting.start()
        noting.join(NOTE_S)

    def committed(self, positions: Positions) -> None:
        """Forget the deaths before a commit of these positions. Keep set-aside records that it has not passed."""
        with self._lock:
            state = self._state
            if not self.careful and not state.set_aside:
                return
            self.careful = False
            self._state = State(
                1,
                set_aside=[
                    place
                    for place in state.set_aside
                    if place.offset >= positions.get(place.topic, {}).get(place.partition, 0)
                ],
            )
            self._write()

    def _suspect(self, places: list[Place]) -> None:
        with self._lock:
            if self.careful:
                self._state.suspects = places
                self._write()

    def _end(self) -> None:
        with self._lock:
            self.careful = False
            self._state = State(0, set_aside=self._state.set_aside)
            if self._state.set_aside:
                self._write()
                return
            self._delete([self._key])

    def _delete(self, unused: list[str]) -> None:
        try:
            self._store.delete(unused)
        except StoreError as error:
            log.warning("could not delete notes on processes that ended", error=str(error))

    def _read(self, key: str) -> State | None:
        try:
            data = self._store.get(key, MAX_BYTES)
            return documents.decode(data, State, MAX_BYTES) if data is not None else None
        except (StateError, ValueError) as error:
            log.warning(f"object {key} is damaged; its counts are lost", error=str(error))
            return State()

    def _write(self) -> None:
        try:
            self._store.replace(self._key, msgspec.json.encode(self._state))
        except StoreError as error:
            self.careful = False
            log.warning(
                "could not note which record is processed, so a record that ends the process now cannot be identified",
                error=str(error),
            )


def setting_aside(places: Container[Place], decode: Decode) -> Decode:
    """Wrap `decode` to reject the records at `places`."""

    def decode_others(record: Record) -> Sample | Rows | None:
        if record.at in places:
            raise RejectError(Reason.POISON, "the process died repeatedly at this record, so it was set aside")
        return decode(record)

    return decode_others if places else decode
