"""Reads windows from the metrics topic."""

from collections.abc import Callable, Iterator

from stream_learner.config import AnySettings
from stream_learner.contract.topics import Names
from stream_learner.contract.window import Window, decode_window
from stream_learner.streams.journal import read_committed
from stream_learner.streams.manifests import check_signature


def read_windows(
    settings: AnySettings, tail: int, refused: Callable[[ValueError], None] = lambda _: None
) -> Iterator[Window]:
    """Yield the windows among the last `tail` offsets of the metrics topic. They may belong to other runs.

    `refused` is called with the reason for each other record. Raises KafkaUnavailableError.
    """
    for record in read_committed(settings, Names.under(settings.prefix).metrics, tail, wait=False):
        try:
            check_signature(record, settings.security.verifier)
            window = decode_window(record.value or b"")
        except ValueError as error:
            refused(error)
        else:
            yield window
