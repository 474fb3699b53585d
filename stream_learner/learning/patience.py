"""Patience: after too many refused candidates, training returns to the last release."""

from typing import Annotated, Any

from msgspec import Meta, Struct

from stream_learner.contract.manifest import Decision
from stream_learner.learning.stored import Count, parse

CUT = 0.5
FLOOR = 0.1


class Stored(Struct):
    refusals: Count
    learning_rate_factor: Annotated[float, Meta(gt=0, le=1)]
    refused: Count = 0


class Patience:
    """Counter of candidates since the last release that were refused because they were worse.

    When the counter reaches the limit, training returns to the last release, and the counter starts again at 0. The
    learning rate is halved each time, but stays at least a tenth of the setting. The next release resets the counter
    and the learning rate.

    A candidate that is refused only because it is not better (`release.rule` = `better`) does not count: by chance,
    half of the equally good candidates score below the last release.
    """

    def __init__(self, limit: int | None):
        """Take the limit of refusals; None means no limit."""
        self._limit = limit
        self._refusals = 0
        self.refused = 0
        """Number of candidates since the last release that were refused because they were worse.

        A roll-back does not reset this number.
        """
        self.learning_rate_factor = 1.0

    def decided(self, decision: Decision) -> bool:
        """Count a decision. Return whether training must return to the last release."""
        if decision.released:
            self._refusals, self.refused, self.learning_rate_factor = 0, 0, 1.0
            return False
        self._refusals += decision.worse
        self.refused += decision.worse
        if self._limit is None or self._refusals < self._limit:
            return False
        self._refusals, self.learning_rate_factor = 0, max(FLOOR, self.learning_rate_factor * CUT)
        return True

    def state_dict(self) -> dict[str, Any]:
        return {
            "refusals": self._refusals,
            "learning_rate_factor": self.learning_rate_factor,
            "refused": self.refused,
        }

    def load_state_dict(self, document: dict[str, Any]) -> None:
        stored = parse(document, Stored)
        self._refusals, self.refused = stored.refusals, stored.refused
        self.learning_rate_factor = stored.learning_rate_factor
