"""The decision to release."""

from stream_learner.config import ReleaseSettings
from stream_learner.records.manifest import Decision
from stream_learner.records.window import Accuracy


def decide(candidate: Accuracy, last: Accuracy | None, settings: ReleaseSettings) -> Decision:
    """Compares two models by mean recall on the same validation samples, held at the same moment.

    Comparing with a stored figure would freeze releases for good when classes arrive: the old figure was made on an
    easier problem. A class that the last release does not know counts as missed by it.
    """
    samples = candidate.total

    def decision(released: bool, reason: str, abstained: bool = False) -> Decision:
        return Decision(
            released=released,
            abstained=abstained,
            candidate=candidate.mean_recall,
            last=last.mean_recall if last else None,
            samples=samples,
            reason=reason,
        )

    if last is None:
        return decision(True, "nothing was released before", abstained=True)
    if samples < settings.min_held_out:
        return decision(True, f"{samples} validation samples are too few to compare", abstained=True)
    new, old = candidate.mean_recall or 0.0, last.mean_recall or 0.0
    floor = old - settings.max_drop
    released = new >= floor
    return decision(
        released, f"mean recall {new:.4f} {'reaches' if released else 'is below'} {old:.4f} - {settings.max_drop}"
    )
