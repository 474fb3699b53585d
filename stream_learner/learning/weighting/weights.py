"""All policies together: the weights for learning a batch now, and the weights that the memory stores."""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from stream_learner.config import WeightsSettings
from stream_learner.contract.window import COMBINED
from stream_learner.learning.stored import parse, part
from stream_learner.learning.weighting.clock import EventClock
from stream_learner.learning.weighting.policies import Arrivals, Times
from stream_learner.registry import WEIGHTS

CLOCK = "event_time"
LARGEST = float(np.finfo(np.float32).max)


class Weighed(NamedTuple):
    """Weights of a batch, float32 [N]: `now` for the batch's own steps, and `stored` for the memory.

    `factors` holds each policy's factors and the `combined` weights, for the window's figures. `timestamps_ms` are the
    samples' event times, int64 [N].
    """

    now: np.ndarray
    stored: np.ndarray
    factors: dict[str, list[float]]
    timestamps_ms: np.ndarray

    def divided(self, lengths: Sequence[int]) -> list["Weighed"]:
        """Return the weights and times of the batch in parts of these lengths. Each part has all factors."""
        ends = list(accumulate(lengths))
        places = [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]
        return [Weighed(self.now[at], self.stored[at], self.factors, self.timestamps_ms[at]) for at in places]


class Weights:
    """The weight alpha: product of the policies' factors, clipped to [0, `weights.max_weight`]. 1 without policies."""

    def __init__(self, settings: WeightsSettings):
        """Build the policies. Raises UsageError when a policy in the settings does not exist."""
        self._max_weight = settings.max_weight
        self._clock = EventClock()
        self._policies = {name: WEIGHTS.lookup(name)(settings) for name in settings.policies}

    def weigh(self, arrivals: Arrivals) -> Weighed:
        """Add a batch of at least one sample to the statistics and return its weights.

        If the batch is then not learned, the caller must restore the earlier state with `load_state_dict`.
        """
        timestamps_ms = self._clock.observe(arrivals.times.timestamps_ms)
        times = arrivals.times._replace(timestamps_ms=timestamps_ms, now_ms=self._clock.now_ms)
        arrivals = arrivals._replace(times=times)
        # Infinite factors are clipped, because windows hold the factors. NaN remains, and then the batch is undone.
        factors = {n: np.clip(policy.factors(arrivals), 0, LARGEST) for n, policy in self._policies.items()}
        ones = np.ones(len(arrivals.labels))
        now = self._clip(math.prod(factors.values(), start=ones))
        stored = self._clip(math.prod((factors[n] for n, p in self._policies.items() if p.stored), start=ones))
        shown = {name: f.tolist() for name, f in factors.items()} | {COMBINED: now.tolist()}
        return Weighed(now, stored, shown, timestamps_ms)

    def replayed(self, stored: np.ndarray, times: Times) -> np.ndarray:
        """Return the weights of samples drawn from the memory, float32 [N]. `stored` are their stored weights."""
        times = times._replace(now_ms=self._clock.now_ms)
        return self._clip(math.prod((p.replayed(times) for p in self._policies.values() if not p.stored), start=stored))

    def _clip(self, weights: np.ndarray) -> np.ndarray:
        return np.clip(weights, 0, self._max_weight).astype(np.float32)

    def retire(self, source: int, target: int | None) -> None:
        """Note that class `source` retired. Its samples now belong to class `target`, or to no class (None)."""
        for policy in self._policies.values():
            policy.retire(source, target)

    def state_dict(self) -> dict[str, Any]:
        """Return each policy's running statistics and the event clock, as a JSON document."""
        return {name: policy.state_dict() for name, policy in self._policies.items()} | {
            CLOCK: self._clock.state_dict()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state. A policy that is not in the state starts again."""
        with part(CLOCK):
            self._clock.load_state_dict(state.get(CLOCK, []))
        for name, policy in self._policies.items():
            with part(name):
                policy.load_state_dict(parse(state.get(name, {}), dict[str, Any]))
