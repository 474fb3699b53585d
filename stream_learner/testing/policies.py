"""The check of weight policies."""

import json
from typing import Any

import numpy as np

from stream_learner.config import WeightsSettings
from stream_learner.learning.weighting import Arrivals, Policy, Times
from stream_learner.registry import WEIGHTS
from stream_learner.testing.checking import Checking, registered
from stream_learner.testing.small_run import NOW_MS, check_in_a_learner, small_settings

DEFAULTS = WeightsSettings(half_life_s=50.0)
CLASSES = 4


def check_weight_policy(kind: type[Policy], settings: WeightsSettings = DEFAULTS) -> None:
    """Check a weight policy, given by its class, with settings of `[weights]`.

    Factors are float64 [N], finite and at least 0. This holds for batches of one or more samples, and while classes
    arrive and retire. The state is JSON and complete: loading it undoes a batch, and another instance that loads it
    continues identically. The check also saves and resumes a Learner that uses the policy. Raises AssertionError.
    """
    check = Checking(kind)
    check.has(kind, "factors", "replayed", "retire", "state_dict", "load_state_dict")
    check.that(isinstance(getattr(kind, "stored", None), bool), "it needs the class attribute `stored`, True or False")
    _check_factors(check, kind, settings)
    _check_replayed(check, kind, settings)
    _check_state(check, kind, settings)
    _check_retiring(check, kind, settings)
    with registered(WEIGHTS, kind) as name:
        weights = settings.model_dump() | {"policies": ["record", name]}
        check_in_a_learner(check, small_settings(weights=weights))


def _arrivals(seed: int, count: int = 8, labels: tuple[int, ...] = tuple(range(CLASSES))) -> Arrivals:
    rng = np.random.default_rng(seed)
    times = np.where(rng.random(count) < 0.2, 0, NOW_MS + 10_000 * seed - rng.integers(0, 60_000, count))
    own, released = (rng.choice(np.array([0, 1e-30, 0.3, 1], np.float32), count) for _ in range(2))
    return Arrivals(
        record_weights=rng.choice([0.0, 0.5, 1.0, 30.0, 1e300], count),
        labels=rng.choice(np.array(labels, np.int64), count),
        times=Times(np.full(count, 8 * seed, np.int64), times.astype(np.int64), NOW_MS + 10_000 * seed),
        probabilities=lambda: own.copy(),
        released_probabilities=lambda: released.copy(),
    )


def _check_factors(check: Checking, kind: type[Policy], settings: WeightsSettings) -> None:
    policy = check.call("building it with the settings of [weights]", lambda: kind(settings))
    for seed, count in enumerate((1, 8, 32, 8, 1)):
        arrivals = _arrivals(seed, count, tuple(range(1 + seed)))
        before = [array.copy() for array in (arrivals.record_weights, arrivals.labels, *arrivals.times[:2])]
        _factors(check, policy, arrivals)
        after = arrivals.record_weights, arrivals.labels, *arrivals.times[:2]
        unchanged = all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))
        check.that(unchanged, "factors() changes the arrays that it gets; compute new ones")


def _factors(check: Checking, policy: Policy, arrivals: Arrivals) -> np.ndarray:
    count = len(arrivals.labels)
    factors = check.call(f"factors() of {count} samples", lambda: policy.factors(arrivals))
    return _checked(check, factors, count, f"factors() of {count} samples")


def _checked(check: Checking, factors: Any, count: int, what: str) -> np.ndarray:
    check.that(isinstance(factors, np.ndarray), f"{what} returns {type(factors).__name__}, not a NumPy array")
    fits = (factors.dtype, factors.shape) == (np.float64, (count,))
    check.that(fits, f"{what} returns {factors.dtype} {list(factors.shape)}, not float64 {[count]}")
    check.that(np.isfinite(factors).all(), f"{what} returns factors that are not finite; limit them")
    check.that((factors >= 0).all(), f"{what} returns negative factors; a factor is at least 0")
    return factors


def _check_replayed(check: Checking, kind: type[Policy], settings: WeightsSettings) -> None:
    policy = kind(settings)
    policy.factors(_arrivals(3))
    for count in (0, 8):
        times = _arrivals(1, count).times
        factors = check.call(f"replayed() of {count} samples", lambda times=times: policy.replayed(times))
        _checked(check, factors, count, f"replayed() of {count} samples")


def _state(check: Checking, policy: Policy) -> str:
    """Return a policy's state as JSON text."""
    state = check.call("state_dict()", policy.state_dict)
    problem = (
        "state_dict() must return a JSON document: a dict of lists, strings and finite numbers of Python's own types"
    )
    try:
        text = json.dumps(state, allow_nan=False)
    except (TypeError, ValueError) as error:
        text = ""
        check.that(False, f"{problem}; {error}")
    check.that(
        isinstance(state, dict) and json.loads(text) == state,
        f"{problem}; this one changes when it is written as JSON and read back",
    )
    return text


def _check_state(check: Checking, kind: type[Policy], settings: WeightsSettings) -> None:
    def next_batch(policy: Policy) -> tuple[bytes, str]:
        return _factors(check, policy, _arrivals(9)).tobytes(), _state(check, policy)

    policy = kind(settings)
    for seed in range(3):
        _factors(check, policy, _arrivals(seed))
    kept = policy.state_dict()
    text = _state(check, policy)
    expected = next_batch(policy)
    check.that(json.dumps(kept) == text, "a batch changes what state_dict() returned before; return a copy")

    def continues(loaded: Policy, problem: str) -> None:
        check.call("load_state_dict()", lambda: loaded.load_state_dict(json.loads(text)))
        incomplete = "load_state_dict() does not restore everything that state_dict() returned"
        check.that(_state(check, loaded) == text, incomplete)
        check.that(next_batch(loaded) == expected, problem)

    everything = "keep all that affects factors in state_dict(), and use no clock and no random numbers"
    continues(kind(settings), f"another instance that loads its state continues differently; {everything}")
    undone = "does not restore the state from before a batch, which is needed when a batch is not learned"
    continues(policy, f"load_state_dict() {undone}; {everything}")
    check.call("load_state_dict({})", lambda: policy.load_state_dict({}))
    began = next_batch(policy) == next_batch(kind(settings))
    check.that(began, "load_state_dict({}) does not start again; an empty state must reset the policy")


def _check_retiring(check: Checking, kind: type[Policy], settings: WeightsSettings) -> None:
    policy = kind(settings)
    for seen in (False, True):
        for source, target in ((1, 0), (2, None), (6, 7)):
            retire = lambda source=source, target=target: policy.retire(source, target)  # noqa: E731
            check.call(f"retire({source}, {target}) {'after' if seen else 'before'} the first batch", retire)
        _state(check, policy)
        _factors(check, policy, _arrivals(4, labels=(0, 3, 7)))
