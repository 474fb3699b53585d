"""Each weight policy, compared with plain arithmetic, and properties of all policies in a learner."""

import json
import math
from collections import Counter
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
from pydantic import ValidationError

from stream_learner import networks as models
from stream_learner.config import WeightsSettings
from stream_learner.contract import tensors
from stream_learner.contract.vocabulary import Reason
from stream_learner.learning.weighting import Arrivals, Policy, Times, Weights
from stream_learner.learning.weighting.policies import FADE
from stream_learner.learning.weighting.weights import CLOCK
from stream_learner.networks.tensors import as_arrays
from stream_learner.publishing.tally import Tally
from stream_learner.registry import WEIGHTS
from stream_learner.run.batches import Batch
from stream_learner.run.driver import Driver

HOUR_MS = 3_600_000
NOW_S = 1_700_000_000
NOW_MS = 1000 * NOW_S


# -- the policies


def arrivals(labels: list[int], **others: Any) -> Arrivals:
    n = len(labels)
    given = {
        "record_weights": np.ones(n),
        "admitted": np.zeros(n, np.int64),
        "timestamps_ms": np.zeros(n, np.int64),
        "probabilities": np.full(n, 0.5, np.float32),
        "released": np.zeros(n, np.float32),
    } | {name: np.asarray(values) for name, values in others.items()}
    return Arrivals(
        given["record_weights"],
        np.array(labels, np.int64),
        Times(given["admitted"], given["timestamps_ms"]),
        lambda: given["probabilities"].astype(np.float32),
        lambda: given["released"].astype(np.float32),
    )


def policy(name: str, **chosen: Any) -> Policy:
    return WEIGHTS[name](WeightsSettings(**chosen))


def test_record_is_the_records_weight_up_to_the_most_allowed():
    factors = policy("record", max_weight=4.0).factors(arrivals([0, 1, 1, 0], record_weights=[0.0, 0.5, 4.0, 1e300]))
    assert factors.tolist() == [0, 0.5, 4, 4]


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999, 0.9999999])
def test_class_balance_is_the_inverse_effective_number_of_all_seen_so_far(beta):
    balance, seen = policy("class_balance", class_balance_beta=beta), Counter()
    for first in range(0, 300, 20):
        labels = [label * label // 9 for label in TARGETS[first : first + 20].tolist()]  # some are rare, 8 appears late
        seen.update(labels)
        effective = {label: sum(beta**i for i in range(n)) for label, n in seen.items()}
        scale = seen.total() / sum(n / effective[label] for label, n in seen.items())
        wanted = [scale / effective[label] for label in labels]
        assert balance.factors(arrivals(labels)).tolist() == pytest.approx(wanted)


def test_class_balance_has_the_mean_1_and_makes_classes_equal():
    balance, labels = policy("class_balance", class_balance_beta=1 - 1e-9), [0] * 100 + [1] * 5
    factors = balance.factors(arrivals(labels))
    assert factors.mean() == pytest.approx(1)
    assert factors[:100].sum() == pytest.approx(factors[100:].sum(), rel=1e-4)


def test_recency_halves_with_each_half_life_of_event_time():
    weights = Weights(WeightsSettings(policies=["recency"], half_life_s=3600))
    ages_h = [0, 1, 0, 2, 0.5, 0, 0, 0, 0, -3]  # the last is of the future
    times = [NOW_MS - int(age * HOUR_MS) for age in ages_h]
    expected = [2 ** -max(age, 0) for age in ages_h]
    assert weights.weigh(arrivals([0] * 10, timestamps_ms=times)).now.tolist() == pytest.approx(expected)
    weights.weigh(arrivals([0] * 101, timestamps_ms=[NOW_MS + HOUR_MS] * 101))
    faded = weights.replayed(np.ones(4), Times(np.zeros(4, np.int64), np.array(times[:4])))
    assert faded.tolist() == pytest.approx([2 ** -(age + 1) for age in ages_h[:4]])


YEAR_2099_MS = 4_070_908_800_000


@pytest.mark.parametrize("wrong", [YEAR_2099_MS, -1, 0, NOW_S, -6_800_000_000_000, 2**62])
def test_one_wrong_clock_changes_nothing_for_others(wrong):
    """The good records of a second have one timestamp, and a wrong one stands among them."""
    chosen = WeightsSettings(policies=["recency"], half_life_s=60)
    undisturbed, disturbed = Weights(chosen), Weights(chosen)
    for second in range(20):
        good = [NOW_MS + 1000 * second] * 30 + [NOW_MS + 1000 * second - 30_000] * 2
        found = undisturbed.weigh(arrivals([0] * 32, timestamps_ms=good))
        mixed = [*good[:7], wrong, *good[7:]] if second == 5 else good
        weighed = disturbed.weigh(arrivals([0] * len(mixed), timestamps_ms=mixed)).now.tolist()
        if second == 5:
            assert weighed.pop(7) == 1  # neither late nor ahead of its time
        assert weighed == found.now.tolist()
        old = Times(np.zeros(2, np.int64), np.array([NOW_MS, wrong if wrong == YEAR_2099_MS else NOW_MS]))
        assert disturbed.replayed(np.ones(2), old)[0] == undisturbed.replayed(np.ones(2), old)[0]
        assert min(found.now) < 0.8


def test_an_unknown_time_is_that_of_its_arrival():
    weights = Weights(WeightsSettings(policies=["recency"], half_life_s=60))
    first = weights.weigh(arrivals([0, 0], timestamps_ms=[-1, NOW_S]))
    assert first.timestamps_ms.tolist() == [0, 0]  # nobody knows
    weights.weigh(arrivals([0] * 5, timestamps_ms=[NOW_MS] * 5))
    later = weights.weigh(arrivals([0, 0], timestamps_ms=[-1, NOW_MS - 60_000]))
    assert later.timestamps_ms.tolist() == [NOW_MS, NOW_MS - 60_000]
    assert later.now.tolist() == [1, 0.5]


def test_recency_in_records_fades_in_the_memory_alone():
    recency = policy("recency", half_life_records=100)
    for admitted in (0, 50, 300):
        assert recency.factors(arrivals([0], admitted=[admitted], timestamps_ms=[-admitted])).tolist() == [1]
    faded = recency.replayed(Times(np.array([0, 100, 250, 300]), np.zeros(4, np.int64)))
    assert faded.tolist() == [2**-3, 2**-2, 2**-0.5, 1]


@pytest.mark.parametrize("chosen", [{}, {"half_life_records": 10, "half_life_s": 10}])
def test_recency_needs_one_half_life(chosen):
    with pytest.raises(ValidationError, match="recency needs either half_life_records or half_life_s"):
        WeightsSettings(policies=["recency"], **chosen)


def test_novelty_is_what_the_release_lacks():
    factors = policy("novelty").factors(arrivals([0, 1, 2], released=[0.0, 0.25, 1.0], probabilities=[0.9] * 3))
    assert factors.tolist() == [1, 0.75, 0]


def test_hardness_is_the_loss_over_its_fading_mean():
    hardness, seen = policy("hardness", max_weight=3.0), []
    rng = np.random.default_rng(0)
    for size in (1, 8, 32, 200, 32):
        probabilities = rng.uniform(0.01, 1, size).astype(np.float32)
        losses = [-math.log(p) for p in probabilities.tolist()]
        seen = [(loss, weight * FADE**size) for loss, weight in seen] + [(loss, 1.0) for loss in losses]
        mean = sum(loss * weight for loss, weight in seen) / sum(weight for _, weight in seen)
        wanted = [min(loss / mean, 3.0) for loss in losses]
        assert hardness.factors(arrivals([0] * size, probabilities=probabilities)).tolist() == pytest.approx(wanted)


def test_hardness_is_finite_whatever_the_model_says():
    assert policy("hardness").factors(arrivals([0, 0], probabilities=[1, 1])).tolist() == [1, 1]
    assert policy("hardness").factors(arrivals([0, 0], probabilities=[0, 1])).tolist() == [2, 0]


# -- together


class Half(Policy):
    """A policy of a user's own."""

    stored = True

    def factors(self, arrivals: Arrivals) -> np.ndarray:
        return np.full(len(arrivals.labels), 0.5)


HALF = f"{__name__}:Half"


def test_factors_are_multiplied_and_clipped_and_those_of_the_moment_are_not_kept():
    weights = Weights(WeightsSettings(policies=["record", "recency", HALF], half_life_s=1, max_weight=2.0))
    times = [NOW_MS, NOW_MS + 1000, NOW_MS + 1000]
    weighed = weights.weigh(arrivals([0, 1, 2], record_weights=[1.0, 0.0, 8.0], timestamps_ms=times))
    assert weighed.now.tolist() == [0.25, 0, 1]
    assert weighed.stored.tolist() == [0.5, 0, 1]
    assert weighed.factors == {
        "record": [1, 0, 2],
        "recency": [0.5, 1, 1],
        HALF: [0.5, 0.5, 0.5],
        "combined": [0.25, 0, 1],
    }
    replayed = weights.replayed(np.array([0.5, 2.0], np.float32), Times(np.zeros(2, np.int64), np.array(times[:2])))
    assert replayed.tolist() == [0.25, 2]
    assert weighed.now.dtype == weighed.stored.dtype == replayed.dtype == np.float32


def test_without_policies_every_weight_is_1():
    weighed = Weights(WeightsSettings(policies=[])).weigh(arrivals([0, 1], record_weights=[0.0, 9.0]))
    assert weighed.now.tolist() == weighed.stored.tolist() == [1, 1]


def test_a_policy_named_twice_is_refused():
    with pytest.raises(ValidationError, match="policies must not repeat a name"):
        WeightsSettings(policies=["record", "novelty", "record"])


# -- in a learner

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
    """Imbalanced, late now and then, of many weights, with classes that arrive; the third is of weight 0."""
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


@pytest.mark.parametrize(
    "forged",
    [
        {CLOCK: [2**70]},
        {CLOCK: [-1]},
        {CLOCK: [NOW_S]},
        {CLOCK: [NOW_MS] * 102},
        {CLOCK: "now"},
        {"recency": {"admitted": "now"}},
        {"recency": {"admitted": -1}},
        {"recency": {"admitted": 2**70}},
    ],
    ids=str,
)
def test_a_clock_that_cannot_be_is_refused(forged):
    weights = Weights(WeightsSettings(policies=["recency"], half_life_s=1))
    weights.weigh(arrivals([0], timestamps_ms=[NOW_MS]))
    before = weights.state_dict()
    with pytest.raises(ValueError, match=next(iter(forged))):
        weights.load_state_dict(before | forged)


@for_every_policy
def test_the_window_tells_the_distribution_of_every_policys_factors(run):
    driver, tally = driver_of(settings(**run)), Tally()
    reports = learn(driver, stream())
    for report in reports:
        tally.add(report)
    assert set(tally.weights) == {*run["weights__policies"], "combined"}
    for name, distribution in tally.weights.items():
        every = [weight for report in reports for weight in report.figures.weights[name]]
        assert distribution.count == len(every) == tally.learned
        assert distribution.mean == pytest.approx(np.mean(every))
        assert (distribution.min, distribution.max) == (min(every), max(every))


def test_novelty_asks_the_last_release_and_not_the_model():
    given = settings(weights__policies=["novelty"], learning__steps_per_batch=5)
    driver = learned(given, stream()[:2])
    candidate = decided(driver).candidate
    assert candidate
    released = models.build(candidate.model).eval()
    released.load_state_dict(candidate.weights)
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
    """What it has learned is easier than the stream was on average, a class that has just arrived is harder."""
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
    """The replayed samples' weights vanish, so experience replay does what fine-tuning does: by SGD, for what rounding
    leaves of a gradient is much to an optimizer whose steps have one size."""

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


# -- what they are worth: a sanity check, not a measurement

TEST_DIGITS = np.arange(1200, len(TARGETS))


def recalls(driver: Driver, labels_of: np.ndarray = TARGETS) -> np.ndarray:
    """Recall of each class on digits that were not learned."""
    driver.learn(batch(TEST_DIGITS.tolist(), position(driver), [str(labels_of[i]) for i in TEST_DIGITS], splits=[TEST]))
    candidate = decided(driver).candidate
    assert candidate
    return np.array([c.correct / c.total for c in sorted(candidate.test.per_class, key=lambda c: str(c.label))])


def in_batches(driver: Driver, indices: np.ndarray, labels: np.ndarray, **rest: Any) -> Driver:
    """Learns digits under these labels, 20 at a time; of the rest, sequences go along."""
    for start in range(0, len(indices), 20):
        part = slice(start, start + 20)
        driver.learn(
            batch(
                indices[part].tolist(),
                position(driver),
                [str(label) for label in labels[part]],
                **{name: values[part] for name, values in rest.items()},
            )
        )
    return driver


def shuffled() -> np.ndarray:
    return np.random.default_rng(0).permutation(1200)


TEACH = {"batch__size": 20, "learning__learning_rate": 0.003, "learning__steps_per_batch": 3}


def test_wrong_labels_of_low_weight_do_less_harm():
    order = shuffled()
    wrong = np.random.default_rng(1).random(1200) < 0.6
    labels = np.where(wrong, (TARGETS[order] + 1) % 10, TARGETS[order])
    weights = np.where(wrong, 0.02, 1.0).tolist()

    def recall(policies: list[str]) -> float:
        driver = driver_of(settings(weights__policies=policies, **TEACH))
        return recalls(in_batches(driver, order, labels, weights=weights)).mean()

    assert recall(["record"]) > recall([]) + 0.2


def test_class_balance_raises_the_recall_of_rare_classes():
    rare = TARGETS[shuffled()] >= 5
    order = np.concatenate([shuffled()[~rare], shuffled()[rare][:30]])  # 20:1
    order = np.concatenate([np.random.default_rng(epoch).permutation(order) for epoch in range(3)])

    def recall(policies: list[str]) -> np.ndarray:
        given = settings(weights__policies=policies, learning__strategy="finetune", **TEACH)
        return recalls(in_batches(driver_of(given), order, TARGETS[order]))

    plain, balanced = recall([]), recall(["class_balance"])
    assert balanced.mean() > plain.mean() + 0.05
    assert balanced[5:].mean() > plain[5:].mean() + 0.1


def test_recency_follows_a_drift():
    """Half-way every digit gets another label; the memory is full of the old ones."""
    order, after = shuffled(), (TARGETS + 1) % 10
    labels = np.concatenate([TARGETS[order[:600]], after[order[600:]]])

    def recall(**given: Any) -> float:
        return recalls(in_batches(driver_of(settings(**given, **TEACH)), order, labels), after).mean()

    assert recall(weights__policies=["recency"], weights__half_life_records=200) > recall() + 0.05


def test_recency_lets_late_records_of_an_old_world_count_less():
    """As before, and half of the later records are older than the change."""
    order, after = shuffled(), (TARGETS + 1) % 10
    new = (np.arange(1200) >= 600) & (np.random.default_rng(0).random(1200) < 0.5)
    labels = np.where(new, after[order], TARGETS[order])
    timestamps_ms = np.where(new, NOW_MS + 10_000_000, NOW_MS).tolist()

    def recall(**given: Any) -> float:
        driver = in_batches(driver_of(settings(**given, **TEACH)), order, labels, timestamps_ms=timestamps_ms)
        return recalls(driver, after).mean()

    assert recall(weights__policies=["recency"], weights__half_life_s=1000) > recall() + 0.2
