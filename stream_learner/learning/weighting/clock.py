"""Event time: a clock that depends only on the records, and that no single record can move far."""

from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from stream_learner.contract.event_time import GREATEST_MS, LEAST_MS
from stream_learner.learning.stored import parse

WINDOW = 101
Timestamp = Annotated[int, Meta(ge=LEAST_MS, le=GREATEST_MS)]


class EventClock:
    """The upper quartile of the last 101 known timestamps of training samples, in milliseconds since 1970, UTC.

    The clock may go back. One wrong timestamp moves the clock at most to the adjacent timestamp in ascending order. Up
    to 25 wrong timestamps cannot move it outside the range of the correct timestamps. Up to half of the samples may be
    late without making the clock late.
    """

    def __init__(self):
        self._last_ms: list[int] = []

    @property
    def now_ms(self) -> int:
        """Event time in milliseconds, 0 before the first known timestamp."""
        return sorted(self._last_ms)[3 * len(self._last_ms) // 4] if self._last_ms else 0

    def observe(self, timestamps_ms: np.ndarray) -> np.ndarray:
        """Add a batch. Return its timestamps [N], with the clock's time in place of unknown times."""
        is_known = (timestamps_ms >= LEAST_MS) & (timestamps_ms <= GREATEST_MS)
        self._last_ms = [*self._last_ms, *timestamps_ms[is_known].tolist()][-WINDOW:]
        return np.where(is_known, timestamps_ms, self.now_ms)

    def state_dict(self) -> list[int]:
        """Return the state as JSON."""
        return list(self._last_ms)

    def load_state_dict(self, document: Any) -> None:
        """Restore a state from `state_dict`. Raises ValueError when it is malformed."""
        self._last_ms = parse(document, list[Timestamp])
        if len(self._last_ms) > WINDOW:
            raise ValueError(f"{len(self._last_ms)} timestamps, more than {WINDOW}")
