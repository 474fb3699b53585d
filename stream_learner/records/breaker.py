"""The circuit breaker for bad input."""

from collections import Counter, deque

from stream_learner.config import RejectsSettings
from stream_learner.records.record import Reason
from stream_learner.records.report import Report


class Breaker:
    """Trips when more than `rejects.max_share` of the last `rejects.window` records were rejected.

    Counts by batch; does not trip before a whole window was seen since the start, so that a restart gets past what
    tripped it.
    """

    def __init__(self, settings: RejectsSettings, enabled: bool = True):
        self._settings = settings
        self._enabled = enabled
        self._batches: deque[tuple[int, Counter[Reason]]] = deque()
        self._records = 0
        self._rejected: Counter[Reason] = Counter()

    def observe(self, report: Report) -> None:
        if not report.records:
            return  # an idle turn of the loop
        rejected = Counter(rejection.reason for rejection in report.rejections)
        self._batches.append((report.records, rejected))
        self._records += report.records
        self._rejected += rejected
        while self._records - self._batches[0][0] >= self._settings.window:
            records, rejected = self._batches.popleft()
            self._records -= records
            self._rejected -= rejected

    @property
    def tripped(self) -> bool:
        seen_enough = self._records >= self._settings.window
        return self._enabled and seen_enough and self._rejected.total() > self._settings.max_share * self._records

    @property
    def share(self) -> float:
        """Share of rejected records, 0..1."""
        return self._rejected.total() / self._records if self._records else 0.0

    @property
    def reasons(self) -> str:
        """Why records were rejected and how many, the most frequent first."""
        return ", ".join(f"{reason.value}: {count}" for reason, count in self._rejected.most_common())
