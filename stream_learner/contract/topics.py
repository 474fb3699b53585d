"""Names of the topics that a run writes."""

from dataclasses import dataclass

OUTPUTS = ("checkpoints", "history", "weights", "metrics", "dead-letters")
"""Topics that a run writes, without their prefix."""


@dataclass(frozen=True)
class Names:
    """Names of the output topics."""

    checkpoints: str
    history: str
    weights: str
    metrics: str
    dead_letters: str

    @classmethod
    def under(cls, prefix: str) -> "Names":
        """Return the names that begin with a prefix."""
        return cls(*(f"{prefix}.{output}" for output in OUTPUTS))
