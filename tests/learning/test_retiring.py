"""Classes retire when `[labels]` makes their labels aliases, or no longer allows them."""

from collections.abc import Collection, Iterator

import numpy as np
import pytest
import torch
from digit_stream import (
    DIGITS_NHWC,
    TEST,
    TRAIN,
    VALIDATION,
    as_bytes,
    as_meant,
    batch,
    decided,
    digits_of,
    driver_of,
    learned,
    position,
    resumed,
    settings,
    stream,
    tensors_of,
)

from stream_learner import networks as models
from stream_learner.learning.evaluation import predict
from stream_learner.learning.heads.statistics import NEVER
from stream_learner.learning.prequential import Prequential
from stream_learner.learning.weighting import Weights
from stream_learner.publishing.snapshot import Snapshot
from stream_learner.run.batch import Batch
from stream_learner.run.driver import Driver

CPU = torch.device("cpu")
SILENT = np.float32(NEVER)
FAST = {"learning__steps_per_batch": 5, "learning__learning_rate": 0.01}


def counts(items: np.ndarray) -> dict[int, int]:
    return dict(zip(*(a.tolist() for a in np.unique(items, return_counts=True)), strict=True))


def bias(snapshot: Snapshot, name: str = "model") -> np.ndarray:
    return tensors_of(snapshot)[f"trainer/{name}/head.bias"].numpy()


def test_samples_move_to_the_label_that_an_alias_stands_for():
    before = learned(settings(), stream()).snapshot()
    driver = resumed(settings(labels__aliases={"1": "0", "9": "nine"}), before)
    after = driver.snapshot()
    for name in ("memory", "validation", "test"):
        then, now = (counts(tensors_of(s)[f"{name}/labels"].numpy()) for s in (before, after))
        assert sum(now.values()) == sum(then.values())
        assert now.get(0, 0) == then.get(0, 0) + then.get(1, 0)
        assert now.get(10, 0) == then.get(9, 0)
        assert not {1, 9} & now.keys()
    assert driver.learner.labels[10] == "nine"


def test_samples_of_a_label_that_is_not_allowed_are_dropped():
    before = learned(settings(), stream()).snapshot()
    after = resumed(settings(labels__allowed=[*"12345678"]), before).snapshot()
    for name in ("memory", "validation", "test"):
        then, now = (counts(tensors_of(s)[f"{name}/labels"].numpy()) for s in (before, after))
        assert now == {label: count for label, count in then.items() if label not in (0, 9)}


@pytest.mark.parametrize("decay", [0.0, 0.9])
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "muon"])
def test_a_new_name_costs_nothing_that_was_learned(optimizer, decay):
    run = {"learning__optimizer": optimizer, "learning__average_decay": decay}
    before = learned(settings(**run), stream())
    after = resumed(settings(labels__aliases={"3": "three"}, **run), before.snapshot())
    index = after.learner.labels.index("three")
    images = torch.from_numpy(DIGITS_NHWC[:100])
    with torch.inference_mode():
        old, new = (driver.learner.network(images) for driver in (before, after))
    # A product with one more column may be rounded otherwise, depending on the processor.
    others = [0, 1, 2, 4, 5, 6, 7, 8, 9]
    torch.testing.assert_close(new[:, [index, *others]], old[:, [3, *others]])
    head, renamed = (driver.learner.network.head for driver in (before, after))
    for name in ("weight", "bias"):
        assert torch.equal(getattr(renamed, name)[[index, *others]], getattr(head, name)[[3, *others]])
    assert (new[:, 3] == NEVER).all()
    (moments,) = {  # of the head's bias
        key
        for key, t in tensors_of(after.snapshot()).items()
        if "optimizer" in key and t.shape == (11,) and "_sq" not in key
    }
    assert torch.equal(tensors_of(after.snapshot())[moments][index], tensors_of(before.snapshot())[moments][3])
    assert tensors_of(after.snapshot())[moments][3] == 0


def test_a_release_names_its_retired_outputs_and_never_predicts_them():
    driver = learned(settings(**FAST), stream())
    driver = resumed(settings(labels__aliases={"1": "0"}, labels__allowed=[*"03456789"], **FAST), driver.snapshot())
    driver.learn(as_meant([batch(digits_of(range(10), 40), first=position(driver))], driver.learner._settings)[0])
    candidate = decided(driver).candidate
    assert candidate
    assert candidate.retired == [1, 2]
    assert candidate.labels == [*"0123456789"]
    network = models.build(candidate.model)
    network.load_state_dict(candidate.parameters)
    assert not {1, 2} & {*predict(network, DIGITS_NHWC[:300], CPU).tolist()}
    assert {c.label for c in candidate.validation.per_class} <= {*"03456789"}


def test_where_no_class_is_left_nothing_is_released():
    driver = learned(settings(release__every_records=1), stream())
    assert driver.learner.release_due
    driver = resumed(settings(release__every_records=1, labels__allowed=["cat"]), driver.snapshot())
    assert not driver.learner.release_due
    driver.learn(batch(digits_of([0], 4), first=position(driver), labels=["cat"]))
    assert driver.learner.release_due
    assert driver.decide().decision.released


@pytest.mark.parametrize("strategy", ["er_la", "derpp", "mkd", "er_ace"])
def test_a_label_that_is_allowed_again_begins_like_a_new_one(strategy):
    run = {"learning__strategy": strategy, "learning__optimizer": "adam", **FAST}
    narrow = settings(labels__allowed=[*"0234"], **run)
    before = learned(settings(**run), stream()[:8]).snapshot()
    driver = resumed(narrow, before)
    driver.learn(as_meant([batch(digits_of([0, 1, 2], 12), first=position(driver))], narrow)[0])
    retired = driver.snapshot()
    assert (bias(retired)[1], bias(retired, "average")[1]) == (SILENT, SILENT)
    driver = resumed(settings(**run), retired)
    assert as_bytes(driver.snapshot()) == as_bytes(retired)  # until a record comes
    for i in range(4):
        driver.learn(batch(digits_of([0, 1, 2], 12, skip=20 + 4 * i), first=position(driver)))
    driver = resumed(settings(**run), driver.snapshot())
    after = driver.snapshot()
    assert driver.learner.labels == [*"0123456789"]
    assert driver.learner.retired == dict.fromkeys("56789")
    assert abs(bias(after)[1]) < 10
    assert abs(bias(after, "average")[1]) < 10
    assert counts(tensors_of(after)["memory/labels"].numpy())[1] == 16
    digits = DIGITS_NHWC[digits_of([1], 60)]
    assert (predict(driver.learner.network, digits, CPU) == 1).mean() > 0.5


def test_weight_decay_does_not_wake_a_silent_row():
    for optimizer in ("adam", "sgd", "muon"):
        run = {"learning__optimizer": optimizer, "learning__weight_decay": 0.1, "learning__learning_rate": 0.1}
        driver = resumed(settings(labels__aliases={"1": "0"}, **run), learned(settings(**run), stream()).snapshot())
        driver.learn(batch(digits_of([0, 2], 16), first=position(driver)))
        end = driver.snapshot()
        assert bias(end)[1] == SILENT
        assert all(torch.isfinite(t).all() for name, t in tensors_of(end).items() if name.startswith("trainer/"))


def test_logits_kept_for_retired_classes_are_compared_no_more():
    run = {"learning__strategy": "derpp"}
    driver = resumed(settings(labels__aliases={"1": "0"}, **run), learned(settings(**run), stream()).snapshot())
    assert np.isnan(driver.learner.shards[0].memory.logits[:, 1]).all()
    assert np.isfinite(driver.learner.shards[0].memory.logits[:, 0]).any()
    driver.learn(batch(digits_of([0, 2], 16), first=position(driver)))
    assert np.isnan(driver.learner.shards[0].memory.logits[:, 1]).all()


def test_recent_predictions_follow():
    prequential = Prequential()
    labels, predictions = np.array([0, 1, 1, 2]), np.array([1, 0, 1, 1])
    prequential.add(labels, predictions, np.full(4, 0.5, np.float32))
    prequential.retire(1, 0)
    recent = prequential.recent(["cat", "kitty", "dog"])
    assert recent
    assert [(c.label, c.correct, c.total) for c in recent.accuracy.per_class] == [("cat", 3, 3), ("dog", 0, 1)]
    prequential.retire(2, None)
    recent = prequential.recent(["cat", "kitty", "dog"])
    assert recent
    assert [(c.label, c.correct, c.total) for c in recent.accuracy.per_class] == [("cat", 3, 3)]


def test_counts_of_class_balance_follow():
    weights = Weights(settings(weights__policies=["class_balance"]).weights)
    weights.load_state_dict({"class_balance": {"counts": [5, 7, 2]}})
    weights.retire(1, 0)
    weights.retire(2, 4)
    assert weights.state_dict()["class_balance"] == {"counts": [12, 0, 0, 0, 2]}
    weights.retire(0, None)
    assert weights.state_dict()["class_balance"] == {"counts": [0, 0, 0, 0, 2]}


# -- around a roll-back

RUN = {
    "learning__average_decay": 0.9,
    "learning__steps_per_batch": 8,
    "learning__learning_rate": 0.02,
    "release__patience": 2,
    "release__max_drop": 0.0,
    "memory__max_items": 16,
    "memory__replay_size": 8,
}
RULES = {"labels__aliases": {"3": "three"}, "labels__allowed": ["1", "2", "three", "4"]}
# (batches learned before a restart with other settings: those settings); training goes back after the nonsense.
CHANGES = {
    "retired since the release": {12: RULES},
    "retired at the release, allowed again since": {4: RULES, 10: {}},
    "retired and allowed again since the release": {10: RULES, 12: {}},
}


def batches() -> Iterator[Batch]:
    """Ten of truth, six of nonsense, four of truth again."""
    first = 0
    for number in range(20):
        wrong = 10 <= number < 16
        indices = digits_of(range(4), 24, skip=6 * (number % 6))
        splits = (TRAIN,) if wrong else (TRAIN, TRAIN, VALIDATION, TRAIN, TEST)
        yield batch(indices, first=first, labels=["1", "2", "3", "0"] if wrong else None, splits=splits)
        first += len(indices)


def run_through(changes: dict[int, dict], restarts: Collection[int], run: dict) -> tuple[Driver, list[Snapshot]]:
    """Decide after every second batch. Restart where the settings change, and before the batches in `restarts`."""
    driver, given, release, found = driver_of(settings(**run)), settings(**run), None, []
    for number, b in enumerate(batches()):
        if number in changes or number in restarts:
            given = settings(**run, **changes[number]) if number in changes else given
            driver = resumed(given, driver.snapshot(), release)
        driver.learn(as_meant([b], given)[0])
        if number % 2:
            found.append(decided(driver))
            release = found[-1] if found[-1].decision.released else release
    return driver, found


@pytest.mark.parametrize("strategy", ["er_la", "derpp"])
@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_training_goes_back_over_a_retirement_the_same_however_often_it_is_stopped(changes, strategy):
    run = RUN | {"learning__strategy": strategy}
    driver, snapshots = run_through(changes, (), run)
    again, others = run_through(changes, range(1, 20), run)
    assert [as_bytes(s) for s in snapshots] == [as_bytes(s) for s in others]
    assert [s.decision for s in snapshots] == [s.decision for s in others]
    assert as_bytes(driver.snapshot()) == as_bytes(again.snapshot())
    assert any(s.discarded for s in snapshots[6:])  # the first decision after the last change, and later ones
    for s in snapshots:
        retired = [index for index, _ in s.document["retired"]]
        for name in ("model", "average"):
            assert np.flatnonzero(bias(s, name) == SILENT).tolist() == sorted(retired)


def test_a_class_that_was_renamed_since_the_release_goes_back_under_its_new_name():
    _, snapshots = run_through({12: RULES}, (), RUN)
    back = next(s for s in snapshots if s.discarded)
    release = next(s for s in reversed(snapshots[:6]) if s.decision and s.decision.released)
    three = back.document["labels"].index("three")
    assert bias(back)[three] == bias(release)[3]
