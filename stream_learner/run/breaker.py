"""The circuit breaker for bad input."""

from collections import Counter, deque

from stream_learner.config import RejectsSettings
from stream_learner.contract.vocabulary import Reason
from stream_learner.formats.rejects import Rejects, describe
from stream_learner.monitoring.report import Report


class Breaker:
    """Circuit breaker. It trips when too many of the last records were rejected.

    It trips at more than `rejects.max_share` of the last `rejects.window` records, or at `rejects.max_in_a_row` records
    in a row. The share counts whole batches, and needs at least `rejects.window` records. Both counts start at 0 in
    each process. Therefore a restarted worker continues after the records that tripped the breaker. Deletion markers
    and rare labels (`labels.min_records`) do not count.
    """

    def __init__(self, settings: RejectsSettings, enabled: bool = True):
        self._settings = settings
        self._enabled = enabled
        self._batches: deque[tuple[int, Counter[tuple[str, str]]]] = deque()
        self._records = 0
        self._rejected: Counter[tuple[str, str]] = Counter()  # by topic and reason
        self._in_a_row = 0
        self._longest_row = 0

    def observe(self, report: Report) -> None:
        """Count a batch."""
        rejections = [rejection for rejection in report.rejections if rejection.reason is not Reason.RARE_LABEL]
        records = report.records - report.tombstones - (len(report.rejections) - len(rejections))
        if not records:
            return
        for used in report.used:
            self._in_a_row = 0 if used else self._in_a_row + 1
            self._longest_row = max(self._longest_row, self._in_a_row)
        rejected = Counter((rejection.record.topic, rejection.reason.value) for rejection in rejections)
        self._batches.append((records, rejected))
        self._records += records
        self._rejected += rejected
        while self._records - self._batches[0][0] >= self._settings.window:
            records, rejected = self._batches.popleft()
            self._records -= records
            self._rejected -= rejected

    @property
    def why(self) -> str | None:
        """Why the breaker tripped, with topics and reasons of the last rejected records; None if it has not tripped."""
        if not self._enabled:
            return None
        most = self._settings.max_in_a_row
        if self._longest_row >= most:
            return f"{self._longest_row} records in a row were rejected (rejects.max_in_a_row = {most}): {self._named}"
        if self._records >= self._settings.window and self.share > self._settings.max_share:
            return (
                f"{self.share:.0%} of the last records were rejected, over rejects.max_share = "
                f"{self._settings.max_share:.0%}: {self._named}"
            )
        return None

    @property
    def share(self) -> float:
        """Share of rejected records, 0..1."""
        return self._rejected.total() / self._records if self._records else 0.0

    @property
    def _named(self) -> str:
        rejects: Rejects = {}
        for (topic, reason), number in self._rejected.items():
            rejects.setdefault(topic, {})[reason] = number
        return describe(rejects)
