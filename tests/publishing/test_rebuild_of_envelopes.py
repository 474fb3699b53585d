"""Runs that learned from messages with many records, rebuilt: several partitions and shards, and records set aside."""

from collections.abc import Container, Sequence
from threading import Event

import msgspec
import numpy as np
import pytest
from fake_run import SIDE, kept_run
from fakes import TOPIC, FakeReplay, Written

from stream_learner.contract.manifest import Manifest, encode
from stream_learner.contract.vocabulary import Reason
from stream_learner.errors import StateError
from stream_learner.formats import arrow
from stream_learner.formats.decoder import Decoder
from stream_learner.formats.record import Fields, Gap, Place, Record
from stream_learner.learning.learner import Learner
from stream_learner.learning.parallel import Parallel
from stream_learner.learning.process import set_up_torch
from stream_learner.run.batches import OpenBatch
from stream_learner.run.driver import Driver
from stream_learner.run.inputs import shard_of
from stream_learner.run.lives import setting_aside
from stream_learner.run.progress import Progress
from stream_learner.run.rebuild import rebuild

BATCH = 8
ROWS = 11
POISONED = Place(TOPIC, 1, 0)
POISONED_ROW = Place(TOPIC, 0, 1, 4)
HISTORY = "digits.history"


def message(partition: int, offset: int) -> Record:
    """Return a message of grey squares. Its first row is a test sample, and its second row has no label."""
    shades = [(row + offset + partition) % 4 for row in range(ROWS)]
    labels = [str(shade) for shade in shades]
    splits = ["test"] + ["train"] * (ROWS - 1)
    pixels = [np.full((SIDE, SIDE, 1), 60 * shade, np.uint8) for shade in shades]
    columns = zip(pixels, labels, splits, strict=True)
    rows = [Fields(image, label, split=split) for image, label, split in columns]
    rows[1] = rows[1]._replace(label=None)
    return Record(TOPIC, partition, offset, 1_700_000_000_000, b"key", arrow.encode(rows), [])


class Script:
    """A source that gives its records once."""

    def __init__(self, records: Sequence[Record]):
        self._records = records

    def poll(self, timeout_s: float) -> Sequence[Record | Gap]:
        del timeout_s
        records, self._records = self._records, []
        return records

    def read_ahead(self) -> None: ...

    def took(self, seconds: float, records: int = 1) -> None: ...


class Learned:
    """A run of two lives. In the second life, a message is set aside of which the first life learned some rows."""

    def __init__(self, shards: int):
        self.run = kept_run(BATCH, run__shards=shards, input__format="arrow")
        set_up_torch(self.run.settings)
        self.records = [message(partition, offset) for offset in range(3) for partition in range(2)]
        self.run.cluster.replay = lambda topic, partition, offset: FakeReplay(
            [record for record in self.records if (record.topic, record.partition) == (topic, partition)], offset
        )
        self.manifests: list[Manifest] = []
        self.dead_letters: list[tuple[Place, Reason, int]] = []
        self._writer = self.run.writer()
        parallel = Parallel(shards)
        self._driver = Driver(Learner(self.run.settings, parallel=parallel), Progress({TOPIC: {0: 0, 1: 0}}))
        self._live(2, {POISONED_ROW})
        self._live(5, {POISONED, POISONED_ROW})

    def _live(self, batches: int, set_aside: Container[Place]) -> None:
        """Learn batches and publish after each, as a worker that begins here."""
        run, driver = self.run, self._driver
        positions = driver.progress.positions[TOPIC]
        unread = [record for record in self.records if record.offset >= positions[record.partition]]
        shards = [
            OpenBatch(
                Script([record for record in unread if shard_of(run.settings, TOPIC, record.partition) == shard]),
                setting_aside(set_aside, Decoder.from_settings(run.settings)),
                driver.progress.positions,
                run.settings.batch,
                Event(),
                lambda: 0.0,
                rows=driver.progress.rows,
                shards=run.settings.run.shards,
            )
            for shard in range(run.settings.run.shards)
        ]
        for _ in range(batches):
            for shard in shards:
                shard.fill(0.0)
            driver.learn(*(shard.take() for shard in shards))
            snapshot = driver.snapshot(driver.decide() if driver.learner.release_due else None)
            letters = snapshot.interval.dead_letters
            self.dead_letters += [(letter.record.at, letter.reason, letter.rows_read) for letter in letters]
            self.manifests.append(run.publish(self._writer, snapshot))

    def rebuild(self, start: int, target: int) -> str:
        run = self.run
        return rebuild(run.settings, run.store, run.cluster, str(start), str(target), lambda *_: None).state


@pytest.mark.parametrize("shards", [1, 2])
def test_a_message_that_was_set_aside_after_some_of_its_rows_were_learned(shards: int) -> None:
    learned = Learned(shards)
    first, last = learned.manifests[1], learned.manifests[-1]
    inside = first.rows[TOPIC][1]
    assert (POISONED, Reason.POISON, inside) in learned.dead_letters
    assert (POISONED_ROW, Reason.POISON, 0) in learned.dead_letters
    assert Place(TOPIC, 0, 2, 1) in {place for place, reason, _ in learned.dead_letters if reason is Reason.NO_LABEL}
    assert any(manifest.poisoned == {TOPIC: {1: [0]}} for manifest in learned.manifests[2:])
    assert len({partition for manifest in learned.manifests for partition in manifest.rows.get(TOPIC, {})}) == 2
    for start in (0, 1, first.sequence, first.sequence + 1):
        assert learned.rebuild(start, last.sequence) == last.state.digest


def test_rows_that_the_ledger_does_not_reach_are_no_rebuild() -> None:
    learned = Learned(1)
    last = learned.manifests[-1]
    forged = msgspec.structs.replace(last, rows={TOPIC: {0: 1}})
    learned.run.cluster.written[HISTORY][-1] = Written(b"", encode(forged))
    with pytest.raises(StateError, match="by its ledger"):
        learned.rebuild(0, last.sequence)
