"""Sums of served predictions between two snapshots."""

from collections import Counter
from dataclasses import dataclass, field

from stream_learner.contract.figures import SERVED_OUTCOMES, Scored, ServedFigures
from stream_learner.contract.vocabulary import Label
from stream_learner.contract.window import MAX_SERVED_RELEASES, Distribution, Served, ServedRelease, accuracy


@dataclass(slots=True)
class _OfRelease:
    """Sums of one release."""

    classes: dict[Label, tuple[int, int]] = field(default_factory=dict)
    scored: int = 0
    probability: float = 0.0
    delays: int = 0
    delay_s: float = 0.0
    shortest_s: float = 0.0
    longest_s: float = 0.0

    def add(self, scored: Scored) -> None:
        correct, total = self.classes.get(scored.label, (0, 0))
        self.classes[scored.label] = correct + scored.correct, total + 1
        self.scored += 1
        self.probability += scored.probability
        if scored.delay_s is not None:
            self.shortest_s = min(self.shortest_s, scored.delay_s) if self.delays else scored.delay_s
            self.longest_s = max(self.longest_s, scored.delay_s)
            self.delays += 1
            self.delay_s += scored.delay_s

    def closed(self, epoch: int, release: int) -> ServedRelease:
        delay = None
        if self.delays:
            delay = Distribution(self.delays, self.delay_s / self.delays, self.shortest_s, self.longest_s)
        return ServedRelease(
            epoch=epoch,
            release=release,
            accuracy=accuracy((label, *counts) for label, counts in self.classes.items()),
            probability=self.probability / self.scored,
            delay_s=delay,
        )


class ServedTally:
    """Sums of `ServedFigures`, by release."""

    def __init__(self):
        self._read = 0
        self._outcomes: Counter[str] = Counter()
        self._waiting = 0
        self._releases: dict[tuple[int, int], _OfRelease] = {}

    def add(self, figures: ServedFigures) -> None:
        """Add the figures of a batch."""
        self._read += figures.read
        self._outcomes += figures.outcomes
        self._waiting = figures.waiting
        for scored in figures.scored:
            self._releases.setdefault((scored.epoch, scored.release), _OfRelease()).add(scored)

    def window(self) -> Served:
        """Return the part of the window."""
        most = sorted(self._releases.items(), key=lambda item: (item[1].scored, item[0]), reverse=True)
        return Served(
            read=self._read,
            **{outcome: self._outcomes[outcome] for outcome in SERVED_OUTCOMES},
            waiting=self._waiting,
            releases=[sums.closed(*release) for release, sums in most[:MAX_SERVED_RELEASES]],
        )
