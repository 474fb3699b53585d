"""Training goes back to the last release when too many candidates were refused."""

import copy
from collections.abc import Iterator

import pytest
import torch
from digit_stream import (
    TEST,
    TRAIN,
    VALIDATION,
    as_bytes,
    batch,
    decided,
    digits_of,
    driver_of,
    position,
    resumed,
    settings,
    tensors_of,
)
from torch import Tensor

from stream_learner.contract.manifest import Decision
from stream_learner.contract.spans import Span
from stream_learner.learning.patience import CUT, FLOOR, Patience
from stream_learner.publishing.snapshot import Snapshot
from stream_learner.run.batch import Batch
from stream_learner.run.driver import Driver

RUN = {
    "learning__average_decay": 0.9,
    "learning__augment": ("crop",),
    "learning__steps_per_batch": 8,
    "release__patience": 2,
    "release__max_drop": 0.0,
    "memory__max_items": 16,
    "memory__replay_size": 8,
}
OPTIMIZERS = {"adam": 0.01, "muon": 0.02}
NONSENSE = ["1", "2", "3", "4"]


def batches() -> Iterator[Batch]:
    """Ten of truth, six of nonsense that brings a new label with it, six of truth again."""
    first = 0
    for number in range(22):
        wrong = 10 <= number < 16
        indices = digits_of(range(4), 24, skip=6 * (number % 6))
        labels = NONSENSE if wrong else None
        splits = (TRAIN,) if wrong else (TRAIN, TRAIN, VALIDATION, TRAIN, TEST)
        yield batch(indices, first=first, labels=labels, splits=splits)
        first += len(indices)


def decisions(driver: Driver, after: int = 0, snapshots: bool = False) -> list[Snapshot]:
    """Learn the batches from `after` on, and decide after every second one. Return the decisions' snapshots."""
    found = []
    for number, b in enumerate(batches()):
        if number < after:
            continue
        driver.learn(b)
        if number % 2:
            found.append(decided(driver))
        elif snapshots:
            driver.snapshot()
    return found


@pytest.fixture(scope="module", params=OPTIMIZERS)
def run(request: pytest.FixtureRequest) -> dict:
    return RUN | {"learning__optimizer": request.param, "learning__learning_rate": OPTIMIZERS[request.param]}


@pytest.fixture(scope="module")
def unbroken(run) -> list[Snapshot]:
    return decisions(driver_of(settings(**run)))


def trainer(snapshot: Snapshot) -> dict[str, Tensor]:
    return {name: t for name, t in tensors_of(snapshot).items() if name.startswith("trainer/")}


def first_roll_back(snapshots: list[Snapshot]) -> tuple[Snapshot, Snapshot]:
    """The release that training went back to, and where it went back."""
    back = next(number for number, s in enumerate(snapshots) if s.discarded)
    released = [s.decision is not None and s.decision.released for s in snapshots]
    last = max(number for number in range(back) if released[number])
    assert back == last + RUN["release__patience"]
    assert any(released[back:])  # the truth is
    return snapshots[last], snapshots[back]


def test_after_so_many_refusals_training_is_where_the_release_was(unbroken):
    then, now = first_roll_back(unbroken)
    assert trainer(then).keys() == trainer(now).keys()
    for name, tensor in trainer(then).items():
        assert torch.equal(tensors_of(now)[name][: len(tensor)] if tensor.ndim else tensors_of(now)[name], tensor), name
    assert len(tensors_of(then)["trainer/model/head.bias"]) == 4
    assert len(tensors_of(now)["trainer/model/head.bias"]) == len(now.document["labels"]) == 5
    start, end = (s.positions["images"][0] for s in (then, now))
    assert now.discarded == {"images": {0: Span(start, end)}}


def test_everything_else_goes_on(unbroken):
    then, now = first_roll_back(unbroken)
    records = now.document["records"]
    assert now.positions == {"images": {0: records}}
    assert records > then.document["records"]
    assert not torch.equal(tensors_of(now)["rng/cpu"], tensors_of(then)["rng/cpu"])
    assert tensors_of(now)["memory/admitted"].max() < then.document["records"]
    assert set(tensors_of(now)["memory/keys"].tolist()) <= set(tensors_of(then)["memory/keys"].tolist())
    assert set(tensors_of(now)["validation/keys"].tolist()) >= set(tensors_of(then)["validation/keys"].tolist())


@pytest.mark.parametrize("stop", [11, 13, 14, 16, 20])
def test_a_run_stopped_and_resumed_around_it_ends_like_one_that_was_not(run, unbroken, stop):
    driver = driver_of(settings(**run))
    snapshots = []
    for number, b in enumerate(batches()):
        if number == stop:
            break
        driver.learn(b)
        if number % 2:
            snapshots.append(decided(driver))
    latest = driver.snapshot()
    release = [s for s in snapshots if s.decision and s.decision.released][-1]
    driver = resumed(settings(**run), latest, release)
    end = decisions(driver, after=stop)[-1]
    assert as_bytes(end) == as_bytes(unbroken[-1])
    assert end.positions == unbroken[-1].positions


def test_snapshots_in_between_change_nothing(run, unbroken):
    assert as_bytes(decisions(driver_of(settings(**run)), snapshots=True)[-1]) == as_bytes(unbroken[-1])


def test_what_was_discarded_once_is_not_discarded_again(run):
    once = settings(**run | {"release__patience": 1})
    driver, end, discarded = driver_of(once), 0, []
    released: list[Snapshot] = []
    for number, b in enumerate(batches()):
        driver.learn(b)
        if number % 2:
            snapshot = decided(driver)
            if snapshot.discarded:
                discarded.append(snapshot.discarded)
                assert snapshot.discarded == {"images": {0: Span(end, position(driver))}}
            else:
                released.append(snapshot)
            end = position(driver)
            driver = resumed(once, snapshot, released[-1])
    assert len(discarded) > 1


def test_of_a_topic_that_came_later_only_what_was_read_is_discarded(run):
    driver, discarded = driver_of(settings(**run)), []
    for number, b in enumerate(batches()):
        if number == 10:  # the first of nonsense; its first records have long fallen off retention
            b.spans |= {"later": {0: Span(5_000, 5_010)}}
        driver.learn(b)
        if number % 2:
            discarded.append(decided(driver).discarded)
    assert [spans["later"] for spans in filter(None, discarded) if "later" in spans] == [{0: Span(5_000, 5_010)}]


def test_without_patience_training_goes_on(run):
    assert not any(s.discarded for s in decisions(driver_of(settings(**run | {"release__patience": None}))))


def test_it_goes_on_at_the_lowered_rate(run, unbroken):
    _, back = first_roll_back(unbroken)
    usual = copy.deepcopy(back)
    assert usual.document["releases"]["patience"]["learning_rate_factor"] == CUT
    usual.document["releases"]["patience"]["learning_rate_factor"] = 1.0
    slower = run | {"learning__learning_rate": CUT * run["learning__learning_rate"]}
    moved, expected = (after_a_batch(resumed(settings(**s), start)) for s, start in ((run, back), (slower, usual)))
    for name, tensor in expected.items():
        assert torch.equal(moved[name], tensor), name


def after_a_batch(driver: Driver) -> dict[str, Tensor]:
    driver.learn(batch(digits_of(range(4), 24), first=position(driver)))
    return trainer(driver.snapshot())


def verdict(released: bool, worse: bool = True) -> Decision:
    figures = {"candidate": 0.5, "last": 0.6, "samples": 100, "reason": ""}
    return Decision(released=released, worse=worse and not released, abstained=False, **figures)


def test_the_learning_rate_falls_to_a_floor_and_returns_with_a_release():
    patience = Patience(2)
    rates = []
    for _ in range(5):
        assert [patience.decided(verdict(False)) for _ in range(2)] == [False, True]
        rates.append(patience.learning_rate_factor)
    assert rates == [CUT, CUT**2, CUT**3, FLOOR, FLOOR]
    assert patience.refused == 10
    again = Patience(2)
    again.load_state_dict(patience.state_dict())
    assert again.refused == 10
    assert not patience.decided(verdict(True))
    assert patience.learning_rate_factor == 1
    assert patience.refused == 0


def test_a_release_starts_the_count_anew_and_a_candidate_that_is_no_worse_does_not_add_to_it():
    patience = Patience(2)
    assert not patience.decided(verdict(False))
    assert not patience.decided(verdict(False, worse=False))
    assert not patience.decided(verdict(True))
    assert not patience.decided(verdict(False))
    assert patience.decided(verdict(False))
