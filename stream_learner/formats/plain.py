"""The format of records whose value is an image."""

from stream_learner.formats.format import Format
from stream_learner.formats.record import Fields, Record


class Plain(Format):
    """The value is the encoded image. The headers are `label` and optionally `weight`, `split` and `id`, as UTF-8 text.

    If a record has a header more than once, the last one counts, as with Kafka's `lastHeader`.
    """

    def read(self, record: Record) -> Fields:
        headers = dict(record.headers)
        return Fields(
            image=record.value,
            label=headers.get("label"),
            weight=headers.get("weight"),
            split=headers.get("split"),
            id=headers.get("id"),
        )
