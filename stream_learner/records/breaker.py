"""The circuit breaker for bad input."""

from collections import deque

from stream_learner.config import RejectsSettings
from stream_learner.records.report import Report


class Breaker:
    """Trips when more than `rejects.max_share` of the last `rejects.window` records were rejected.

    Counts by batch; does not trip before a whole window was seen since the start, so that a restart gets past what
    tripped it.
    """

    def __init__(self, settings: RejectsSettings, enabled: bool = True):
        self._settings = settings
        self._enabled = enabled
        self._batches: deque[tuple[int, int]] = deque()
        self._records = 0
        self._rejected = 0

    def observe(self, report: Report) -> None:
        if not report.records:
            return  # an idle turn of the loop
        self._batches.append((report.records, len(report.rejections)))
        self._records += report.records
        self._rejected += len(report.rejections)
        while self._records - self._batches[0][0] >= self._settings.window:
            records, rejected = self._batches.popleft()
            self._records -= records
            self._rejected -= rejected

    @property
    def tripped(self) -> bool:
        seen_enough = self._records >= self._settings.window
        return self._enabled and seen_enough and self._rejected > self._settings.max_share * self._records

    @property
    def share(self) -> float:
        """Share of rejected records, 0..1."""
        return self._rejected / self._records if self._records else 0.0
