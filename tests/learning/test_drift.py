"""The drift detector, compared with river's; its errors; and the effect of a drift on learning."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from digit_stream import TARGETS, as_bytes, batch, learned, resumed, settings
from river.drift import ADWIN

from stream_learner.contract.spans import Span
from stream_learner.contract.window import Drift
from stream_learner.learning.drift import Adwin, Change
from stream_learner.publishing.snapshot import Snapshot
from stream_learner.run.batch import Batch

DELTA = 0.002
N = 8_000
ERROR_RATES = {
    "constant": lambda t: 0.3 + 0 * t,
    "abrupt": lambda t: np.where(t < 4000, 0.1, 0.4),
    "gradual": lambda t: np.interp(t, [4000, 6000], [0.1, 0.4]),
    "better": lambda t: np.where(t < 4000, 0.4, 0.1),
    "learning, then new classes": lambda t: np.exp(-(t % 2500) / 300),
    "always right": lambda t: 0.0 * t,
    "always wrong": lambda t: 1.0 + 0 * t,
}


def errors(rate: Callable, seed: int) -> list[bool]:
    return (np.random.default_rng(seed).random(N) < rate(np.arange(N))).tolist()


def changes(errors: list[bool]) -> list[tuple[int, Change]]:
    """Return the changes that a detector sees in a stream of errors, each with the number of samples before it."""
    adwin = Adwin(DELTA)
    return [(t, change) for t, error in enumerate(errors, 1) if (change := adwin.add(error))]


def rises(errors: list[bool]) -> list[int]:
    return [t for t, change in changes(errors) if change.after > change.before]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", ERROR_RATES)
def test_it_sees_what_rivers_adwin_sees(name, seed):
    ours, rivers = Adwin(DELTA), ADWIN(DELTA)
    for error in errors(ERROR_RATES[name], seed):
        rivers.update(error)
        change = ours.add(error)
        assert (change is not None, ours.samples, ours.errors) == (rivers.drift_detected, rivers.width, rivers.total)
        if change:
            ours = Adwin(DELTA)  # river's forgets all it has, ours what it has seen to be of the past


@pytest.mark.parametrize("rate", [0.0, 0.02, 0.1, 0.3, 0.5, 1.0])
def test_a_stream_that_stays_the_same_gives_no_alarm(rate):
    assert [changes(errors(lambda t: rate + 0 * t, seed)) for seed in range(5)] == [[]] * 5


@pytest.mark.parametrize("seed", range(5))
def test_an_abrupt_rise_is_seen_within_some_dozens_of_samples_and_what_lay_before_is_forgotten(seed):
    adwin = Adwin(DELTA)
    seen = [t for t, error in enumerate(errors(ERROR_RATES["abrupt"], seed), 1) if adwin.add(error)]
    assert 4000 < seen[0] <= 4000 + 128
    assert N - 4000 <= adwin.samples < N - 4000 + 128
    assert adwin.errors / adwin.samples == pytest.approx(0.4, abs=0.03)


@pytest.mark.parametrize("seed", range(5))
def test_a_gradual_rise_is_seen_before_it_is_over_and_again_while_it_goes_on(seed):
    seen = rises(errors(ERROR_RATES["gradual"], seed))
    assert 4000 < seen[0] < 5000
    assert seen[-1] < N - 1000
    assert len(seen) > 3


@pytest.mark.parametrize("seed", range(5))
def test_a_fall_shrinks_the_window_and_is_no_rise(seed):
    seen = changes(errors(ERROR_RATES["better"], seed))
    assert 4000 < seen[0][0] <= 4000 + 128
    assert all(change.after < change.before for _, change in seen)
    assert rises(errors(ERROR_RATES["better"], seed)) == []


def test_the_errors_before_and_after_are_those_of_what_was_dropped_and_kept():
    window, adwin = [], Adwin(DELTA)
    for error in errors(ERROR_RATES["abrupt"], 0):
        window.append(error)
        change = adwin.add(error)
        dropped, window = window[: len(window) - adwin.samples], window[len(window) - adwin.samples :]
        assert (change is not None) == bool(dropped)
        if change:
            assert change == (np.mean(dropped), np.mean(window))


def test_a_detector_resumed_after_every_sample_goes_on_as_if_it_had_not_been():
    stream = errors(ERROR_RATES["abrupt"], 0)
    adwin, seen = Adwin(DELTA), []
    for t, error in enumerate(stream, 1):
        if change := adwin.add(error):
            seen.append((t, change))
        document = adwin.state_dict()
        adwin = Adwin(DELTA)
        adwin.load_state_dict(document)
    assert seen == changes(stream)


# -- in the learner

CHANGE = 2_400  # records
RECORDS = 3_600
BATCH = 20
USUAL = {"learning__learning_rate": 0.001, "memory__replay_size": 24, "drift__boost_records": 200}
BOOST = USUAL | {"learning__on_drift": "boost", "drift__boost_learning_rate": 3.0, "drift__boost_replay": 0.5}
EQUAL = USUAL | {"learning__learning_rate": 0.003, "memory__replay_size": 12}


def digits(change: str | None) -> list[Batch]:
    """Digits at random. From record 2,400 on their labels are permuted, or digits 5 to 9 come for the first time."""
    indices = np.random.default_rng(0).integers(0, len(TARGETS), RECORDS)
    if change == "new classes":
        indices[:CHANGE] = np.random.default_rng(1).choice(np.flatnonzero(TARGETS < 5), CHANGE)
    labels = TARGETS[indices]
    if change == "permuted labels":
        labels[CHANGE:] = (labels[CHANGE:] + 3) % 10
    return [
        batch(indices[i : i + BATCH].tolist(), first=i, labels=[str(label) for label in labels[i : i + BATCH]])
        for i in range(0, RECORDS, BATCH)
    ]


def drifts(snapshot: Snapshot) -> list[Drift]:
    return snapshot.interval.tally.drifts


@pytest.mark.parametrize("change", ["permuted labels", "new classes"])
def test_a_change_of_the_stream_is_an_event_of_the_window(change):
    snapshot = learned(settings(), digits(change)).snapshot()
    first = drifts(snapshot)[0]
    assert CHANGE < first.records <= CHANGE + 128
    assert first.spans == {"images": {0: Span(first.records - BATCH, first.records)}}
    assert first.error_before < first.error_after
    window = snapshot.interval.tally.window(
        run_id="", epoch=1, sequence=1, created_at="", validation=None, test=None, recent=snapshot.recent, lag={}
    )
    assert window.drifts == drifts(snapshot)


def test_learning_from_a_stream_that_stays_the_same_is_no_drift():
    assert drifts(learned(settings(), digits(None)).snapshot()) == []


def test_a_drift_boosts_rate_and_replay_for_so_many_records_wherever_the_run_was_stopped():
    """Each batch teaches what it teaches a learner of the boosted, or the usual, rate and replay size."""
    boosting, usual, equal = settings(**BOOST), settings(**USUAL), settings(**EQUAL)
    batches = digits("permuted labels")
    quiet = learned(boosting, batches[: CHANGE // BATCH])
    assert as_bytes(quiet.snapshot()) == as_bytes(learned(usual, batches[: CHANGE // BATCH]).snapshot())
    unbroken, boosted = resumed(boosting, quiet.snapshot()), []
    before, until = quiet.snapshot(), 0
    for b in batches[CHANGE // BATCH : CHANGE // BATCH + 40]:
        seen = unbroken.learn(b).drifts
        after = unbroken.snapshot()
        if seen:
            until = after.document["records"] + 200
        boosted.append(before.document["records"] < until)
        for given in (boosting, equal if boosted[-1] else usual):
            other = resumed(given, before)
            other.learn(b)
            assert as_bytes(other.snapshot()) == as_bytes(after)
        before = after
    assert len([now for then, now in pairwise(boosted) if now and not then]) == 1  # the drifts follow close
    assert 200 / BATCH < sum(boosted) < len(boosted)


def test_without_a_boost_a_drift_changes_nothing_that_is_learned():
    stream = digits("permuted labels")[: (CHANGE + 400) // BATCH]
    boost_of_1 = BOOST | {"drift__boost_learning_rate": 1.0, "drift__boost_replay": 1.0}
    driver = learned(settings(**USUAL), stream)
    snapshot = driver.snapshot()
    assert drifts(snapshot)
    assert as_bytes(snapshot) == as_bytes(learned(settings(**boost_of_1), stream).snapshot())
    assert not driver.learner.drift.boosted(driver.learner.records)
