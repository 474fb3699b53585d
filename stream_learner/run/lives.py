"""Detect records that end the process, and set them aside.

A life is one process of the active worker. `<run.id>/lives.json` counts the lives since the last commit. If a run has
several ranks, each other rank has an object of its own, named after its first shard. A life that
the program itself ended is not a death and does not count. After a death, the next life is careful until its first
commit: before it decodes or learns records, it notes their places in the object. After three deaths, a record at which
both of the last two careful lives died is set aside. If both lives died while learning the same batch, the next life
learns the records of this batch one by one. If no death came before a life, the life makes only two small writes.

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
        """Begin a life of the rank that carries `shards`. Raises StoreError when the store cannot be read."""
        self._store = store
        self._key, *others = (keys.lives(settings.run.id, shard) for shard in shards)
        self._lock = threading.Lock()  # commits happen on the publisher's thread
        before = self._read(self._key)
        # Other shards of this rank had a rank of their own before.
        before.set_aside += [place for key in others for place in self._read(key).set_aside]
        died_at = [*before.died_at, before.suspects][-2:] if before.lives else []
        repeated = len(died_at) == 2 and before.lives >= DEATHS
        again = list({*died_at[0]} & {*died_at[1]}) if repeated else []
        deaths, set_aside = before.lives, before.set_aside
        if repeated and len(died_at[0]) == len(died_at[1]) == len(again) == 1:
            deaths, died_at, set_aside, again = 0, [], [*set_aside, *again][-MAX_SET_ASIDE:], []
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
        self._write()

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
        """Note an exit that the program chose: a normal end, or a StreamLearnerError. Any other end is a death."""
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
            try:
                self._store.delete([self._key])
            except StoreError as error:
                log.warning("could not note that this process ended normally", error=str(error))

    def _read(self, key: str) -> State:
        try:
            data = self._store.get(key, MAX_BYTES)
            return documents.decode(data, State, MAX_BYTES) if data is not None else State()
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
