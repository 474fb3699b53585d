"""Forms an input record may have: a pure function from record to fields for each."""

from collections.abc import Callable

from stream_learner.formats.record import Fields, Record


def plain(record: Record) -> Fields:
    """Value: the encoded image. Headers: `label`, and optionally `weight`, `split`, `id`, each as UTF-8 text.

    Of a header that stands twice the last counts, as in Kafka's own `lastHeader`.
    """
    headers = dict(record.headers)
    return Fields(
        image=record.value,
        label=headers.get("label"),
        weight=headers.get("weight"),
        split=headers.get("split"),
        id=headers.get("id"),
    )


Format = Callable[[Record], Fields]
"""Raises RejectError when the record does not have this form."""
