"""When what was learned is refused so often that training is to go back."""

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
    """Counts the candidates refused since the last release for being worse, and lowers the learning rate each time they
    were too many. The next release puts both back.

    A candidate that is refused for being no better (`release.rule` at `better`) is no reason to give up what was
    learned: half of those that are as good are below the last release by chance.
    """

    def __init__(self, limit: int | None):
        """`limit` refusals are too many; None: never."""
        self._limit = limit
        self._refusals = 0
        self.refused = 0
        """Candidates refused for being worse since the last release; a roll-back does not reset it."""
        self.learning_rate_factor = 1.0

    def decided(self, decision: Decision) -> bool:
        """Takes note of a decision; whether training is to go back."""
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
