"""Properties of the learner that do not depend on the strategy or the model."""

import io
from itertools import combinations, islice
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from digit_stream import (
    DIGITS_NHWC,
    EIGHT_NHW,
    TARGETS,
    as_bytes,
    batch,
    decided,
    digits_of,
    driver_of,
    learned,
    position,
    resumed,
    settings,
    stream,
)
from PIL import Image

from benchmarks.single_shard import single_shard
from stream_learner.config import Settings
from stream_learner.contract.vocabulary import Reason, Split
from stream_learner.errors import UsageError
from stream_learner.formats.decoder import Decoder
from stream_learner.formats.record import Gap, Record, Sample
from stream_learner.learning import classes, process
from stream_learner.learning.identity import STATE_FORMAT, check_fits, identity
from stream_learner.learning.learner import Learner
from stream_learner.learning.process import cpu_limit, set_up_torch
from stream_learner.learning.strategies import Losses, Minibatch, Step
from stream_learner.learning.strategies.er import ExperienceReplay
from stream_learner.learning.strategies.finetune import FineTune
from stream_learner.networks.tensors import load_parameters
from stream_learner.run.driver import Driver
from stream_learner.run.progress import Progress


def test_a_teacher_that_is_not_kept_is_refused():
    with pytest.raises(UsageError, match=r"'mkd' uses the average as teacher; set learning.average_decay above 0"):
        driver_of(settings(learning__strategy="mkd", learning__average_decay=0.0))


@pytest.mark.parametrize(("groups", "few"), [(10, {Split.VALIDATION: 1.0}), (120, {})])
def test_held_out_sets_of_few_groups_are_found_also_after_a_restart(groups, few):
    held_out = batch(digits_of(range(10), 120), splits=[Split.VALIDATION])
    held_out.samples = [sample._replace(group=i % groups) for i, sample in enumerate(held_out.samples)]
    driver = learned(settings(), [held_out])
    assert driver.learner.few_groups() == few
    assert resumed(settings(), driver.snapshot()).learner.few_groups() == few


@pytest.mark.parametrize("head", ["linear", "ridge"])
def test_a_prediction_is_that_of_a_release_and_changes_nothing(head):
    driver = learned(settings(model__head=head), [batch(digits_of(range(10), 200))])
    before = as_bytes(driver.snapshot())
    predicted = driver.learner.predict(DIGITS_NHWC[:300])
    assert as_bytes(driver.snapshot()) == before
    weights = driver.learner.decide().candidate.parameters
    network = driver.learner.network.eval()
    load_parameters(network, weights)
    with torch.inference_mode():
        logits = network(torch.from_numpy(DIGITS_NHWC[:300]))
    assert predicted.labels == [driver.learner.labels[index] for index in logits.argmax(1)]
    assert np.allclose(predicted.probabilities, logits.softmax(1), atol=1e-6)


def test_a_learner_works_without_kafka():
    learner = Learner(settings())
    with pytest.raises(UsageError, match="knows no class yet"):
        learner.predict([DIGITS_NHWC[0]])
    samples = [Sample(str(i), int(TARGETS[i]), DIGITS_NHWC[i]) for i in range(100)]
    assert learner.learn(samples).learned == 100
    assert learner.learn([Sample("held out", 3, DIGITS_NHWC[3], split=Split.TEST)]).samples == {Split.TEST: 1}
    assert set(learner.predict(DIGITS_NHWC[:20]).labels) <= set(range(10))


class Alone:
    """A strategy that is none by its class."""

    def losses(self, step: Step) -> Losses:
        return FineTune().losses(step)


class MeanLoss(FineTune):
    """`reduction="none"` was forgotten."""

    def losses(self, step: Step) -> Losses:
        losses, weights = super().losses(step)
        return Losses(losses.mean(), weights)


def test_a_class_of_ones_own_that_is_no_strategy_is_refused():
    with pytest.raises(UsageError, match=r"Alone' is not a class derived from stream_learner.Strategy"):
        driver_of(settings(learning__strategy=f"{__name__}:Alone"))


def test_losses_that_are_not_one_a_sample_are_refused():
    with pytest.raises(UsageError, match=r"gives losses of shape \[\] and weights of shape \[8\]; both must be \[N\]"):
        learned(settings(learning__strategy=f"{__name__}:MeanLoss"), stream()[:1])


class Recorded(ExperienceReplay):
    """Keeps what each step was given."""

    steps: ClassVar[list[tuple[Minibatch, Minibatch]]] = []

    def losses(self, step: Step) -> Losses:
        self.steps.append((step.stream, step.replay))
        return super().losses(step)


class Taught(ExperienceReplay):
    """Keeps what is given for a teacher."""

    teachers: ClassVar[list[torch.nn.Module | None]] = []

    def losses(self, step: Step) -> Losses:
        self.teachers.append(step.average)
        return super().losses(step)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_a_strategy_is_given_the_average_where_one_is_kept(decay):
    Taught.teachers.clear()
    driver = learned(settings(learning__strategy=f"{__name__}:Taught", learning__average_decay=decay), stream()[:2])
    (teacher,) = set(Taught.teachers)
    assert teacher is (driver.learner.network if decay else None)


def test_each_step_with_a_batch_has_its_own_variants_and_its_own_draw_from_the_memory():
    run = settings(
        learning__strategy=f"{__name__}:Recorded",
        learning__steps_per_batch=3,
        learning__augment=("crop", "flip"),
        memory__replay_size=6,
    )
    driver = learned(run, stream()[:6])
    Recorded.steps.clear()
    indices = digits_of(range(10), 12, skip=100)
    driver.learn(batch(indices, first=position(driver)))
    streams, replays = zip(*Recorded.steps, strict=True)
    assert len(streams) == 3
    for one, other in combinations(streams, 2):
        assert torch.equal(one.labels, other.labels)
        assert not torch.equal(one.images_NHWC, other.images_NHWC)
    for one, other in combinations(replays, 2):
        assert len(one.labels) == 6
        assert not torch.equal(one.labels, other.labels) or not torch.equal(one.images_NHWC, other.images_NHWC)
    assert len({tuple(replayed.labels.tolist()) for replayed in replays}) > 1
    originals = {image.tobytes() for image in DIGITS_NHWC}
    for seen in (*streams, *replays):  # 25 places, mirrored or not: some stay as they are
        assert sum(image.numpy().tobytes() not in originals for image in seen.images_NHWC) > len(seen.labels) / 2


def test_logits_are_kept_of_classes_that_came_before_the_batch():
    driver = driver_of(settings(learning__strategy="derpp"))
    for labels in ([0, 1], [2, 0]):
        driver.learn(batch(digits_of(labels, 6), first=position(driver)))
    known = [2 if offset >= 6 else 0 for offset in driver.learner.shards[0].memory.admitted]
    kept = driver.learner.shards[0].memory.logits
    assert np.isnan(kept[:, 2:]).all()
    assert (np.isfinite(kept).sum(1) == known).all()


def test_no_logits_are_kept_of_a_class_that_no_step_has_learned_with():
    driver = driver_of(settings(learning__strategy="derpp"))
    driver.learn(batch(digits_of([0, 1], 6)))
    driver.learn(batch(digits_of([2], 6), first=position(driver), weights=[0]))  # makes a row and no step
    driver.learn(batch(digits_of([0], 6), first=position(driver)))
    assert np.isfinite(driver.learner.shards[0].memory.logits[6:]).all(0).tolist() == [True, True, False]


class Topic:
    """A topic that is read to its end. The stop comes after that."""

    def __init__(self, records: list[Record]):
        self._records = iter(records)
        self._ended = False

    def poll(self, timeout_s: float) -> list[Record | Gap]:  # noqa: ARG002 (the protocol's signature)
        polled: list[Record | Gap] = list(islice(self._records, 100))
        self._ended = not polled
        return polled

    def read_ahead(self) -> None:
        pass

    def took(self, seconds: float, records: int = 1) -> None:
        pass

    def is_set(self) -> bool:
        return self._ended


def digits_as_records() -> list[Record]:
    order = np.random.default_rng(0).permutation(len(TARGETS))
    records = []
    for offset, index in enumerate(order):
        png = io.BytesIO()
        Image.fromarray(EIGHT_NHW[index]).save(png, "PNG")
        records.append(Record("images", 0, offset, 0, None, png.getvalue(), [("label", b"%d" % TARGETS[index])]))
    return records


def test_digits_are_learned_from_records_to_a_release():
    given = settings(
        model__name="cnn",
        model__height=8,
        model__width=8,
        batch__size=32,
        batch__linger_s=1e6,
        learning__strategy="er",
        learning__steps_per_batch=3,
        split__validation=0.1,
        split__test=0.2,
    )
    topic, driver = Topic(digits_as_records()), driver_of(given)
    correct = seen = 0
    for b in single_shard(topic, Decoder.from_settings(given), {}, given.batch, topic):
        for right, total in driver.learn(b).figures.prequential.values():
            correct, seen = correct + right, seen + total
    candidate = decided(driver).candidate
    assert candidate
    assert candidate.test.total > 300
    assert candidate.test.accuracy is not None
    assert candidate.test.accuracy > 0.85
    assert 0.5 < correct / seen < candidate.test.accuracy  # it was worse while it learned


@pytest.mark.parametrize(
    ("changed", "value"),
    [
        ("model__name", "cnn"),
        ("model__height", 10),
        ("model__std", [0.5]),
        ("learning__strategy", "finetune"),
        ("learning__optimizer", "sgd"),
        ("run__seed", 1),
    ],
)
def test_a_state_of_other_settings_is_refused(changed, value):
    snapshot = learned(settings(), stream()[:2]).snapshot()
    name = changed.removeprefix("learning__").removeprefix("run__").replace("__", ".")
    with pytest.raises(ValueError, match=f"its {name} is .*, the settings say .*"):
        resumed(settings(**{changed: value}), snapshot)
    with pytest.raises(ValueError, match=f"its format is 0, the settings say {STATE_FORMAT}"):
        check_fits(snapshot.document | {"format": 0}, identity(settings()), settings())


def test_fewer_classes_than_are_known_are_refused():
    snapshot = learned(settings(), stream()).snapshot()
    with pytest.raises(ValueError, match=r"it has 10 classes, more than model.max_classes = 9"):
        resumed(settings(model__max_classes=9), snapshot)


@pytest.mark.parametrize(
    ("changed", "value"),
    [("learning__learning_rate", 0.1), ("learning__steps_per_batch", 2), ("model__max_classes", 10), ("run__id", "b")],
)
def test_what_may_be_tuned_does_not_part_a_run_from_its_state(changed, value):
    snapshot = learned(settings(), stream()).snapshot()
    assert as_bytes(resumed(settings(**{changed: value}), snapshot).snapshot()) == as_bytes(snapshot)


def test_a_smaller_memory_holds_less_after_a_restart():
    snapshot = learned(settings(), stream()).snapshot()
    assert len(resumed(settings(memory__max_items=5), snapshot).learner.shards[0].memory) == 5
    assert len(resumed(settings(memory__max_items=0), snapshot).learner.shards[0].memory) == 0


def test_a_snapshot_is_a_copy():
    driver = learned(settings(), stream()[:4])
    snapshot = driver.snapshot()
    before = as_bytes(snapshot)
    driver.learn(batch(digits_of(range(10), 20), first=position(driver)))
    assert as_bytes(snapshot) == before
    assert snapshot.positions == {"images": {0: 29}}


def test_a_restored_learner_leaves_the_state_it_was_given_alone():
    given = settings()
    snapshot = learned(given, stream()[:4]).snapshot()
    before = as_bytes(snapshot)
    driver = resumed(given, snapshot)
    driver.learn(stream()[4])
    driver.learn(batch(digits_of(range(10), 20), first=position(driver)))
    assert as_bytes(snapshot) == before
    assert snapshot.positions == {"images": {0: 29}}


def test_a_batch_that_does_not_continue_the_positions_is_refused():
    driver = Driver(Learner(settings()), Progress({"images": {0: 5}}))
    with pytest.raises(ValueError, match=r"images\[0\]: offset 5 comes next, not 0"):
        driver.learn(batch([0]))


def exploding(**overrides) -> Settings:
    return settings(learning__optimizer="sgd", learning__learning_rate=1e30, **overrides)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", ["mlp", "cnn", "resnet18_slim"])
def test_an_enormous_learning_rate_diverges_and_is_noticed(model, precision):
    driver = driver_of(exploding(model__name=model, learning__precision=precision))
    for i in range(8):
        driver.learn(batch(digits_of([0, 1], 8, skip=4 * i), first=8 * i))
        if driver.learner.diverged:
            break
    assert driver.learner.diverged
    tally = driver.snapshot().interval.tally
    assert tally.read.rejects["images"]["non_finite_step"] + tally.read.splits["train"] == tally.read.records


def test_the_number_of_threads_is_the_settings():
    before = torch.get_num_threads()
    set_up_torch(settings(learning__threads=2))
    assert torch.get_num_threads() == 2
    set_up_torch(settings(learning__threads=0, model__name="cnn"))
    assert torch.get_num_threads() == 2  # as before: one thread per core at the start of a process
    set_up_torch(settings(learning__threads=0, model__name="mlp"))
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("files", "limit", "threads"),
    [
        ({}, None, 4),
        ({"cpu.max": "max 100000\n"}, None, 4),
        ({"cpu.max": "250000 100000\n"}, 2.5, 2),
        ({"cpu.max": "50000 100000\n"}, 0.5, 1),
        ({"cpu.max": "800000 100000\n"}, 8.0, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None, 4),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3.0, 3),
    ],
)
def test_a_container_gets_no_more_threads_than_its_cpu_limit(
    files: dict[str, str], limit: float | None, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert cpu_limit(tmp_path) == limit
    monkeypatch.setattr(process, "CGROUP", tmp_path)
    torch.set_num_threads(4)
    set_up_torch(settings(learning__threads=0, model__name="cnn"))
    assert torch.get_num_threads() == threads


def test_a_label_that_all_labels_together_have_no_room_for_is_rejected(monkeypatch):
    """Also after a restart: the bound is on what the manifest would have to name."""
    monkeypatch.setattr(classes, "MAX_LABELS_BYTES", len('"aaaa","bb",'))
    driver = learned(settings(), [batch(digits_of([0], 1), labels=["aaaa"])])
    for _ in range(2):
        report = driver.learn(batch(digits_of([1, 2], 2), first=position(driver), labels=["ccc", "bb"]))
        assert [r.reason for r in report.rejections] == [Reason.TOO_MANY_CLASSES]
        assert "more than 12 bytes" in report.rejections[0].message
        assert driver.learner.labels == ["aaaa", "bb"]
        driver = resumed(settings(), driver.snapshot())
