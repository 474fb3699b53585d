"""A run that learned from records in memory, rebuilt from there: the same bytes, or an error that says what differs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from fake_run import SIDE, FakeRun, kept_run
from fakes import TOPIC, Written

from stream_learner.contract.manifest import Manifest, encode
from stream_learner.contract.spans import Span
from stream_learner.errors import InputError, MismatchError, StateError, StreamLearnerError, UsageError
from stream_learner.formats.decoder import Decoder
from stream_learner.formats.images import png
from stream_learner.formats.record import Record
from stream_learner.learning.learner import Learner
from stream_learner.learning.process import set_up_torch
from stream_learner.run.batch import Batch
from stream_learner.run.driver import Driver
from stream_learner.run.progress import Progress
from stream_learner.run.rebuild import Rebuilt, rebuild

BATCH = 8
BATCHES = 12
SAVE_EVERY = 2
HISTORY = "digits.history"


def record(offset: int) -> Record:
    """Return a grey square whose label is its shade. Every seventh has no label."""
    shade = offset % 4
    label = [] if offset % 7 == 6 else [("label", str(shade).encode())]
    split = b"test" if offset % 5 == 4 else b"validation" if offset % 5 == 3 else b"train"
    image = png(np.full((SIDE, SIDE, 1), 60 * shade, np.uint8))
    return Record(TOPIC, 0, offset, 1_700_000_000_000, None, image, [*label, ("split", split)])


def learn(run: FakeRun) -> list[Manifest]:
    """Learn the input, release and save as the worker's loop does, and publish."""
    set_up_torch(run.settings)
    decode, writer = Decoder.from_settings(run.settings), run.writer()
    driver = Driver(Learner(run.settings), Progress({TOPIC: {0: 0}}))
    run.cluster.input = [record(offset) for offset in range(BATCH * BATCHES)]
    published: list[Manifest] = []
    for number in range(1, BATCHES + 1):
        batch = Batch()
        start, end = BATCH * (number - 1), BATCH * number
        for one in run.cluster.input[start:end]:
            batch.add(one, decode)
        batch.cover(TOPIC, 0, start, end)
        driver.learn(batch)
        if driver.learner.release_due:
            published.append(run.publish(writer, driver.snapshot(driver.decide())))
        elif number % SAVE_EVERY == 0:
            published.append(run.publish(writer, driver.snapshot()))
    return published


class Learned:
    """A run and what it published."""

    def __init__(self):
        self.run = kept_run(BATCH)
        self.manifests = learn(self.run)

    def rebuild(self, start: Any, target: Any, progress: Callable[[int, int], None] = lambda *_: None) -> Rebuilt:
        before, objects = dict(self.run.cluster.written), self.run.store.objects
        try:
            return rebuild(self.run.settings, self.run.store, self.run.cluster, str(start), str(target), progress)
        finally:
            assert self.run.cluster.written == before
            assert self.run.store.objects == objects

    def forge(self, **changes: Any) -> int:
        """Replace the last manifest of the history by one with these changes. Return its sequence."""
        last = msgspec.structs.replace(self.manifests[-1], **changes)
        self.run.cluster.written[HISTORY][-1] = Written(b"", encode(last))
        return last.sequence


@pytest.fixture
def learned() -> Learned:
    return Learned()


def test_every_checkpoint_is_rebuilt_from_earlier_ones(learned: Learned) -> None:
    ends = {0: 0} | {manifest.sequence: manifest.positions[TOPIC][0] for manifest in learned.manifests}
    assert sum(manifest.released for manifest in learned.manifests) > 1
    for end in learned.manifests:
        for start in sorted({0, end.sequence // 2, end.sequence - 1}):
            reports: list[tuple[int, int]] = []
            rebuilt = learned.rebuild(start, end.sequence, lambda *report, reports=reports: reports.append(report))
            assert (rebuilt.start, rebuilt.end) == (start, end.sequence)
            assert rebuilt.records == ends[end.sequence] - ends[start]
            assert rebuilt.batches == rebuilt.records // BATCH == len(reports)
            assert reports[-1] == (rebuilt.records, rebuilt.records)
            assert rebuilt.state == end.state.digest
            assert rebuilt.release == (end.release.object.digest if end.released and end.release else None)


def test_only_the_input_is_asked_for_its_id(learned: Learned) -> None:
    """Whoever rebuilds needs few rights."""
    learned.run.effects.take()
    del learned.run.cluster.ids["digits.checkpoints"]
    learned.rebuild(0, 1)
    assert learned.run.effects.take() == ["check topics for rebuild"]


def test_an_input_that_was_created_again_is_refused(learned: Learned) -> None:
    learned.run.cluster.ids[TOPIC] = "another id"
    with pytest.raises(InputError, match=f"topic {TOPIC} was deleted and created again: .* cannot be rebuilt"):
        learned.rebuild(0, 1)


def test_records_that_are_other_ones_give_other_bytes(learned: Learned) -> None:
    records = learned.run.cluster.input
    records[0] = records[0]._replace(value=records[1].value)
    with pytest.raises(MismatchError, match="the state of checkpoint 1 was rebuilt as sha256:"):
        learned.rebuild(0, 1)


def test_another_release_than_the_one_published_is_a_mismatch(learned: Learned) -> None:
    end = next(manifest for manifest in learned.manifests if manifest.released)
    assert end.release
    release = msgspec.structs.replace(
        end.release, object=msgspec.structs.replace(end.release.object, digest=end.state.digest)
    )
    value = encode(msgspec.structs.replace(end, release=release))
    learned.run.cluster.written[HISTORY][end.sequence - 1] = Written(b"", value)
    with pytest.raises(MismatchError, match=f"the release of checkpoint {end.sequence} was rebuilt as"):
        learned.rebuild(0, end.sequence)


def test_other_settings_are_named_beside_the_mismatch(learned: Learned) -> None:
    learned.run.settings = learned.run.settings.model_copy(
        update={"learning": learned.run.settings.learning.model_copy(update={"learning_rate": 0.5})}
    )
    with pytest.raises(MismatchError, match="it is rebuilt with other settings, unlike checkpoint 1"):
        learned.rebuild(0, 1)


def test_the_state_of_the_last_release_is_needed_to_begin_after_it(learned: Learned) -> None:
    start = next(m for m in learned.manifests if m.release and not m.released)
    saved = start.released_state()
    assert saved
    learned.run.store.delete([saved.object.key])
    with pytest.raises(
        StateError, match=f"the state of checkpoint {saved.sequence}, which has the last release, is also needed"
    ):
        learned.rebuild(start.sequence, start.sequence + 1)
    learned.rebuild(0, start.sequence + 1)


def test_a_file_with_the_state_stands_for_it(learned: Learned, tmp_path: Path) -> None:
    first, second, *_ = learned.manifests
    state = tmp_path / "state"
    state.write_bytes(learned.run.store.fetch(first.state))
    learned.run.store.delete([first.state.key])
    assert learned.rebuild(state, second.sequence).start == first.sequence
    manifest = tmp_path / "manifest"
    manifest.write_bytes(encode(second))
    assert learned.rebuild(state, manifest).end == second.sequence


@pytest.mark.parametrize(
    ("start", "target", "error", "match"),
    [
        (2, 2, UsageError, "not the state of a checkpoint before 2"),
        (0, 99, UsageError, "which has checkpoints 1 to"),
        ("nowhere", 2, UsageError, "neither a sequence, a key, a URL nor a file"),
    ],
)
def test_what_is_not_there(
    learned: Learned, start: Any, target: Any, error: type[StreamLearnerError], match: str
) -> None:
    with pytest.raises(error, match=match):
        learned.rebuild(start, target)


def test_a_ledger_that_is_longer_than_its_spans_is_refused(learned: Learned) -> None:
    spans = {TOPIC: {0: Span(learned.manifests[-2].positions[TOPIC][0], BATCH * BATCHES - 1)}}
    end = learned.forge(spans=spans, positions={TOPIC: {0: BATCH * BATCHES - 1}})
    with pytest.raises(StateError, match=f"checkpoint {end} cannot be rebuilt"):
        learned.rebuild(end - 1, end)
