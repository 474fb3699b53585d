"""Each weight policy raises the recall that it is for: a sanity check, not a measurement."""

from typing import Any

import numpy as np
from digit_stream import TARGETS, TEST, batch, decided, driver_of, position, settings
from weight_arrivals import NOW_MS

from stream_learner.run.driver import Driver

TEST_DIGITS = np.arange(1200, len(TARGETS))


def recalls(driver: Driver, labels_of: np.ndarray = TARGETS) -> np.ndarray:
    """Recall of each class on digits that were not learned."""
    driver.learn(batch(TEST_DIGITS.tolist(), position(driver), [str(labels_of[i]) for i in TEST_DIGITS], splits=[TEST]))
    candidate = decided(driver).candidate
    assert candidate
    return np.array([c.correct / c.total for c in sorted(candidate.test.per_class, key=lambda c: str(c.label))])


def in_batches(driver: Driver, indices: np.ndarray, labels: np.ndarray, **rest: Any) -> Driver:
    """Learn digits under these labels, 20 at a time. Sequences in `rest` are cut alike."""
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
    """Half-way every digit gets another label. The memory is full of the old ones."""
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
