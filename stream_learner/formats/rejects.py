"""Count rejected records by topic and reason, so that an operator can find their producers."""

from collections.abc import Iterable, Mapping

from stream_learner.formats.record import Rejection

Rejects = dict[str, dict[str, int]]
"""Number of rejected records per topic and reason."""

TOPICS_SHOWN = 5


def count(rejects: Rejects, rejections: Iterable[Rejection]) -> None:
    """Add rejections to `rejects`."""
    for rejection in rejections:
        add(rejects, rejection.record.topic, rejection.reason.value, 1)


def add(rejects: Rejects, topic: str, reason: str, number: int) -> None:
    """Add a number of rejected records to `rejects`."""
    reasons = rejects.setdefault(topic, {})
    reasons[reason] = reasons.get(reason, 0) + number


def by_reason(rejects: Rejects) -> dict[str, int]:
    """Return the number of rejected records per reason, over all topics."""
    total: dict[str, int] = {}
    for reasons in rejects.values():
        for reason, number in reasons.items():
            total[reason] = total.get(reason, 0) + number
    return total


def describe(rejects: Mapping[str, Mapping[str, int]]) -> str:
    """Return `topic: reason 3, reason 1; topic: ...`, the most frequent first, with at most TOPICS_SHOWN topics."""
    topics = sorted(rejects, key=lambda topic: -sum(rejects[topic].values()))
    shown = [f"{topic}: {_reasons(rejects[topic])}" for topic in topics[:TOPICS_SHOWN]]
    if len(topics) > TOPICS_SHOWN:
        rest = sum(sum(rejects[topic].values()) for topic in topics[TOPICS_SHOWN:])
        shown.append(f"{len(topics) - TOPICS_SHOWN} more topics: {rest} records")
    return "; ".join(shown)


def _reasons(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {number}" for reason, number in sorted(reasons.items(), key=lambda item: -item[1]))
