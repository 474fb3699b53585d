"""Names of the topics of a run, except its input."""

from dataclasses import dataclass

OUTPUTS = ("checkpoints", "history", "weights", "metrics", "dead-letters")
"""Topics that the worker writes, without their prefix."""
BESIDE = ("predictions", "acks", "pins")
"""Topics that other programs and people write, without their prefix. A worker runs without them."""


@dataclass(frozen=True)
class Names:
    """Names of the topics of a run."""

    checkpoints: str
    history: str
    weights: str
    metrics: str
    dead_letters: str
    predictions: str
    """Predictions of released models, written by servers."""
    acks: str
    """The release that each follower uses, written by followers."""
    pins: str
    """Releases that followers must use or must not use, written by people."""

    @classmethod
    def under(cls, prefix: str) -> "Names":
        """Return the names that begin with a prefix."""
        return cls(*(f"{prefix}.{topic}" for topic in OUTPUTS + BESIDE))
