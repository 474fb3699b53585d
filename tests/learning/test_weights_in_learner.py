"""Properties of all weight policies in a learner."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from digit_stream import (
    DIGITS_NHWC,
    TARGETS,
    TEST,
    TRAIN,
    VALIDATION,
    as_bytes,
    batch,
    decided,
    digits_of,
    driver_of,
    learn,
    learned,
    position,
    resumed,
    settings,
    tensors_of,
)
from weight_arrivals import HALF, NOW_MS

from stream_learner import networks as models
from stream_learner.contract import tensors
from stream_learner.contract.vocabulary import Reason
from stream_learner.learning.weighting import Arrivals, Policy
from stream_learner.learning.weighting.weights import CLOCK
from stream_learner.networks.tensors import as_arrays
from stream_learner.publishing.tally import Tally
from stream_learner.registry import WEIGHTS
from stream_learner.run.batch import Batch
from stream_learner.run.driver import Driver

TOGETHER: dict[str, Any] = {"weights__policies": [*WEIGHTS], "weights__half_life_s": 50.0}
RUNS: list[dict[str, Any]] = [
    *({"weights__policies": [name], "weights__half_life_s": 50.0} for name in WEIGHTS),
    TOGETHER,
    {"weights__policies": ["recency"], "weights__half_life_records": 40},
]

for_every_policy = pytest.mark.parametrize(
    "run", RUNS, ids=lambda run: "+".join(run["weights__policies"]) + ",records" * ("weights__half_life_records" in run)
)


def stream() -> list[Batch]:
    """Return imbalanced batches with late records, many weights and classes that arrive. The third has weight 0."""
    digits = [[0, 0, 0, 1], [0, 0, 1, 2], [0, 1], [0, 1, 2, 3], [0, 0, 3, 4, 5], [5, 5, 6, 7, 8, 9]]
    batches: list[Batch] = []
    for i, classes in enumerate(digits):
        batches.append(
            batch(
                digits_of(classes, 12, skip=12 * i),
                first=12 * i,
                weights=[0.0] if i == 2 else [1.0, 0.5, 2.0, 30.0, 0.0],
                splits=[TRAIN, TRAIN, TRAIN, TRAIN, VALIDATION, TRAIN, TEST],
                timestamps_ms=[NOW_MS + 10_000 * i, NOW_MS + 10_000 * i - 25_000],
            )
        )
    return batches


def test_a_run_of_all_policies_that_is_resumed_after_every_batch_ends_like_one_that_was_not():
    run = settings(**TOGETHER)

    def end(stop: bool) -> bytes:
        driver, released = driver_of(run), None
        for b in stream():
            driver.learn(b)
            snapshot = decided(driver)
            if snapshot.decision and snapshot.decision.released:
                released = snapshot
            if stop and released:
                driver = resumed(run, snapshot, released)
        return as_bytes(driver.snapshot())

    assert end(stop=True) == end(stop=False)


def trained_by(driver: Driver) -> bytes:
    """The state without what counts records, predictions and draws."""
    snapshot = driver.snapshot()
    kept = {name: t for name, t in tensors_of(snapshot).items() if not name.startswith(("rng/", "prequential/"))}
    counters = ("records", "non_finite_in_a_row", "prequential", "drift")
    document = {name: value for name, value in snapshot.document.items() if name not in counters}
    return tensors.encode(as_arrays(kept), document)


@for_every_policy
def test_a_batch_whose_weights_are_all_zero_changes_nothing(run):
    """Not even the policies' statistics: classes are not counted, and the newest event time stays."""
    others = [name for name in run["weights__policies"] if name != "record"]
    given = settings(**run | {"weights__policies": ["record", *others]})
    driver = learned(given, stream()[:2])
    before = trained_by(driver)
    nothing = batch(digits_of([0, 1, 2], 9, skip=50), position(driver), weights=[0.0], timestamps_ms=[900_000])
    report = driver.learn(nothing)
    assert (report.figures.learned, report.figures.steps) == (9, 0)
    assert report.figures.weights["combined"] == [0] * 9
    assert trained_by(driver) == before


class NotANumber(Policy):
    """A policy that fails when a record weighs 7."""

    stored = True

    def factors(self, arrivals: Arrivals) -> np.ndarray:
        return np.where(arrivals.record_weights == 7, np.nan, 1.0)


@for_every_policy
def test_a_step_that_is_not_finite_is_undone_and_leaves_the_statistics_alone(run):
    given = settings(**run | {"weights__policies": [*run["weights__policies"], f"{__name__}:NotANumber"]})
    driver = learned(given, stream()[:2])
    before = trained_by(driver)
    bad = batch(digits_of([0, 1, 2], 9, skip=50), position(driver), weights=[7.0], timestamps_ms=[900_000])
    report = driver.learn(bad)
    assert {r.reason for r in report.rejections} == {Reason.NON_FINITE_STEP}
    assert (report.figures.learned, report.figures.weights) == (0, {})
    assert trained_by(driver) == before


@pytest.mark.parametrize("head", ["prototype", "ridge"])
def test_nothing_that_is_not_finite_is_added_to_a_head_that_is_solved(head):
    given = settings(model__head=head, weights__policies=[f"{__name__}:NotANumber"])
    driver = learned(given, stream()[:2])
    before = trained_by(driver)
    report = driver.learn(batch(digits_of([0, 1, 2], 9, skip=50), position(driver), weights=[7.0]))
    assert {r.reason for r in report.rejections} == {Reason.NON_FINITE_STEP}
    assert trained_by(driver) == before


@for_every_policy
def test_its_state_is_a_json_document_and_may_be_absent(run):
    driver = learned(settings(**run), stream())
    document = driver.snapshot().document["weights"]
    assert json.loads(json.dumps(document)) == document
    assert set(document) == {*run["weights__policies"], CLOCK}
    without = learned(settings(weights__policies=[]), stream()).snapshot()
    assert learn(resumed(settings(**run), without), [batch([0], first=position(driver))])[0].figures.learned == 1


@for_every_policy
def test_the_window_tells_the_distribution_of_every_policys_factors(run):
    driver, tally = driver_of(settings(**run)), Tally()
    reports = learn(driver, stream())
    for report in reports:
        tally.add(report)
    assert set(tally.weights) == {*run["weights__policies"], "combined"}
    for name, distribution in tally.weights.items():
        every = [weight for report in reports for weight in report.figures.weights[name]]
        assert distribution.count == len(every) == tally.read.splits["train"]
        assert distribution.mean == pytest.approx(np.mean(every))
        assert (distribution.min, distribution.max) == (min(every), max(every))


def test_novelty_asks_the_last_release_and_not_the_model():
    given = settings(weights__policies=["novelty"], learning__steps_per_batch=5)
    driver = learned(given, stream()[:2])
    candidate = decided(driver).candidate
    assert candidate
    released = models.build(candidate.model).eval()
    released.load_state_dict(candidate.parameters)
    driver.learn(batch(digits_of([0, 1, 2], 8, skip=80), position(driver)))  # the model moves on
    indices = digits_of([0, 1, 2, 9], 8, skip=100)
    with torch.no_grad():
        probabilities = released(torch.from_numpy(DIGITS_NHWC[indices])).softmax(1)
    wanted = [
        1 - float(row[candidate.labels.index(label)]) if (label := str(TARGETS[i])) in candidate.labels else 1
        for i, row in zip(indices, probabilities, strict=True)
    ]
    factors = driver.learn(batch(indices, position(driver))).figures.weights["novelty"]
    assert factors == pytest.approx(wanted, abs=1e-6)
    assert factors.count(1.0) == 2


def test_hardness_is_of_the_model_as_it_predicted():
    """A learned class is easier than the stream was on average. A class that has just arrived is harder."""
    driver = driver_of(
        settings(weights__policies=["hardness"], learning__steps_per_batch=20, learning__learning_rate=0.01)
    )
    for i in range(3):
        driver.learn(batch(digits_of([3, 4], 8, skip=8 * i), position(driver)))
    factors = driver.learn(batch(digits_of([3, 5], 8, skip=60), position(driver))).figures.weights["hardness"]
    assert max(factors[::2]) < 0.5 < 1.5 < min(factors[1::2])


def kept(driver: Driver) -> dict[str, list]:
    tensors = tensors_of(driver.snapshot())
    return {name: tensors[f"memory/{name}"].tolist() for name in ("weights", "admitted", "timestamps_ms")}


def test_what_is_the_samples_own_is_kept_with_it():
    driver = driver_of(settings(weights__policies=["record", "class_balance", HALF]))
    driver.learn(batch([0, 1], weights=[2.0], timestamps_ms=[NOW_MS]))
    driver.learn(batch([0, 0, 1, 2], first=2, weights=[1.0, 0.0, 1.0, 1.0], timestamps_ms=[NOW_MS + 6000]))
    assert kept(driver) == {
        "weights": [1, 1, 0.5, 0.5, 0.5],  # class balance is of the moment, weight 0 teaches nothing
        "admitted": [0, 0, 2, 2, 2],
        "timestamps_ms": [NOW_MS, NOW_MS, *[NOW_MS + 6000] * 3],
    }


def test_held_out_samples_keep_the_records_weight_alone():
    driver = driver_of(settings(weights__policies=[HALF]))
    driver.learn(batch([0, 1], weights=[3.0, 1e300], splits=[TEST]))
    assert tensors_of(driver.snapshot())["test/weights"].tolist() == [3, 10]


def test_a_memory_that_fades_at_once_leaves_plain_steps_on_the_stream():
    """The replayed samples' weights vanish, so experience replay does what fine-tuning does.

    With SGD, because an optimizer with steps of one size amplifies the rounding errors of a gradient.
    """

    def weights_after(**given: Any) -> dict[str, torch.Tensor]:
        batches = [batch(digits_of([0, 1], 8, skip=8 * i), first=8 * i) for i in range(4)]
        run = {"learning__strategy": "er", "learning__optimizer": "sgd", "learning__learning_rate": 0.05}
        tensors = tensors_of(learned(settings(**run | given), batches).snapshot())
        return {name: tensor for name, tensor in tensors.items() if "model/" in name}

    plain = weights_after(learning__strategy="finetune")
    faded = weights_after(weights__policies=["recency"], weights__half_life_records=0.01)
    remembered = weights_after(weights__policies=["recency"], weights__half_life_records=1e9)
    assert all(torch.allclose(plain[name], faded[name], atol=1e-6) for name in plain)
    assert not all(torch.allclose(plain[name], remembered[name], atol=1e-4) for name in plain)
