"""Records that end the process: found by the lives that died at them, and set aside.

`<run.id>/lives.json` counts the lives since the last commit; one that ends as the program chose is not counted. A life
after a death is careful until its first commit: it writes there which records it is about to decode or learn. After
three deaths, if the last two careful lives died at the same single record, it is set aside; if they died while learning
the same batch, the next life learns its records one by one. An ordinary life costs two small writes.

The object is advice, as election is: a frozen worker that was replaced may overwrite it, which loses a count only.
"""

import threading
from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import Annotated

import msgspec
import structlog
from msgspec import Meta

from stream_learner.checkpoints.store import Store
from stream_learner.config import MIB, Settings
from stream_learner.contract import documents, keys
from stream_learner.contract.documents import Count
from stream_learner.contract.manifest import Manifest
from stream_learner.contract.spans import Offset, Partition, Topic
from stream_learner.contract.vocabulary import Reason
from stream_learner.errors import FencedError, StateError, StoreError, StreamLearnerError
from stream_learner.formats.record import Record, RejectError, RetryLaterError, Sample
from stream_learner.run.batches import Decode

log = structlog.get_logger()

DEATHS = 3
# Three batches of places, and those set aside.
MAX_BYTES = 16 * MIB
MAX_SET_ASIDE = 1_000
Place = tuple[Topic, Partition, Offset]
"""Topic, partition, offset."""


class State(msgspec.Struct):
    """Contents of lives.json."""

    lives: Count = 0
    """Lives since the last commit, the present one included; each but that has died."""
    suspects: list[Place] = []
    """Records that the present life is decoding or learning, if it is careful."""
    died_at: Annotated[list[list[Place]], Meta(max_length=2)] = []
    """The suspects of the last two lives that died."""
    set_aside: Annotated[list[Place], Meta(max_length=MAX_SET_ASIDE)] = []
    """Records to reject without decoding them, until a commit is past them."""


class Lives:
    """The present life of a run's active worker, and what is remembered of those before.

    When the store cannot be written, it logs that once and is no longer careful.
    """

    def __init__(self, store: Store, settings: Settings):
        """Begin a life. Raises StoreError when the store cannot be read."""
        self._store = store
        self._key = keys.lives(settings.run.id)
        self._lock = threading.Lock()  # commits happen on the publisher's thread
        before = self._read()
        died_at = [*before.died_at, before.suspects][-2:] if before.lives else []
        repeated = len(died_at) == 2 and before.lives >= DEATHS
        again = list({*died_at[0]} & {*died_at[1]}) if repeated else []
        deaths, set_aside = before.lives, before.set_aside
        if repeated and len(died_at[0]) == len(died_at[1]) == len(again) == 1:
            deaths, died_at, set_aside, again = 0, [], [*set_aside, *again][-MAX_SET_ASIDE:], []
        self.alone = frozenset(again)
        """Records to learn each in a batch of its own."""
        self._state = State(deaths + 1, [], died_at, set_aside)
        self.careful = deaths > 0
        """Whether it writes what it works on. It then does nothing beside a publication."""
        if self.careful:
            log.warning("the run's last worker died; this one is careful until it has saved", deaths=deaths)
        for topic, partition, offset in set_aside:
            log.warning(
                "a record ended the process again and again; it is set aside (poison)",
                topic=topic,
                partition=partition,
                offset=offset,
            )
        if self.alone:
            log.warning("the process died again while learning the same records; they are learned one by one")
        self._write()

    def guarded(self, decode: Decode) -> Decode:
        """Wrap `decode`: reject what is set aside, and in a careful life write down first what is decoded."""

        def guarded(record: Record) -> Sample | None:
            with self.suspecting([(record.topic, record.partition, record.offset)]):
                return decode(record)

        return setting_aside(frozenset(self._state.set_aside), guarded if self.careful else decode)

    @contextmanager
    def suspecting(self, places: list[Place]) -> Iterator[None]:
        """Write down, in a careful life, that these records are being worked on."""
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
        """Note an exit that the program chose. Bugs, the user's own code and a lack of memory are deaths."""
        try:
            yield
        except FencedError:  # the object is the next owner's now
            raise
        except StreamLearnerError:
            self._end()
            raise
        self._end()

    def committed(self, manifest: Manifest) -> None:
        """Forget the deaths before this commit; keep what was set aside and is not yet passed."""
        with self._lock:
            state = self._state
            if not self.careful and not state.set_aside:
                return
            self.careful = False
            self._state = State(
                1,
                set_aside=[
                    (topic, partition, offset)
                    for topic, partition, offset in state.set_aside
                    if offset >= manifest.positions.get(topic, {}).get(partition, 0)
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
                log.warning("could not note that this life ended well", error=str(error))

    def _read(self) -> State:
        try:
            data = self._store.get(self._key, MAX_BYTES)
            return documents.decode(data, State, MAX_BYTES) if data is not None else State()
        except (StateError, ValueError) as error:
            log.warning(f"object {self._key} is damaged; what it counted is forgotten", error=str(error))
            return State()

    def _write(self) -> None:
        try:
            self._store.replace(self._key, msgspec.json.encode(self._state))
        except StoreError as error:
            self.careful = False
            log.warning(
                "could not note which record is worked on; a record that ends the process now is not found",
                error=str(error),
            )


def setting_aside(places: Container[Place], decode: Decode) -> Decode:
    """Return `decode` with records at `places` rejected."""

    def decode_others(record: Record) -> Sample | None:
        if (record.topic, record.partition, record.offset) in places:
            raise RejectError(Reason.POISON, "the process died again and again at this record; it was set aside")
        return decode(record)

    return decode_others if places else decode
