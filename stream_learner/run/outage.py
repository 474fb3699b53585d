"""Waits and tries again while a record format cannot read a record."""

import threading
import time
from collections.abc import Callable, Iterator

import structlog

from stream_learner.errors import DependencyError
from stream_learner.formats.record import Record, RetryLaterError, Rows, Sample
from stream_learner.run.batches import TURN_S, Decode

log = structlog.get_logger()

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 10.0


class Outage:
    """Wait between two attempts to read a record: 0.1 s, then twice as long each time, up to 10 s."""

    def __init__(
        self,
        give_up_s: float,
        stop: threading.Event,
        on_change: Callable[[str | None], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """`give_up_s` is the setting `kafka.give_up_s`. `on_change` gets the reason of a wait, and None at its end."""
        self._give_up_s = give_up_s
        self._stop = stop
        self._on_change = on_change
        self._clock = clock
        self._began: float | None = None
        self._delay_s = FIRST_DELAY_S

    def wait(self, record: Record, error: RetryLaterError) -> Iterator[None]:
        """Wait until the record should be read again, or until `stop` is set. Yield at least every TURN_S.

        Raises DependencyError once `give_up_s` seconds have passed since the first attempt.
        """
        now = self._clock()
        why = f"the record {record.topic}[{record.partition}] {record.offset} cannot be read now: {error}"
        if self._began is None:
            self._began, self._delay_s = now, FIRST_DELAY_S
            log.warning(f"{why}; waiting")
        give_up_at = self._began + self._give_up_s
        if now >= give_up_at:
            raise DependencyError(
                f"{why}. The record format has asked to wait for kafka.give_up_s = {self._give_up_s:g} s. Nothing is "
                "lost: repair the service that the record format needs, then restart to resume from the last committed "
                "checkpoint"
            )
        self._on_change(why)
        until = min(now + self._delay_s, give_up_at)
        self._delay_s = min(2 * self._delay_s, LONGEST_DELAY_S)
        while (left_s := until - self._clock()) > 0 and not self._stop.wait(min(left_s, TURN_S)):
            yield

    def over(self) -> None:
        """Note that a record was read, which ends the outage."""
        if self._began is not None:
            log.info("records can be read again", waited_s=round(self._clock() - self._began, 1))
            self._began = None
            self._on_change(None)


def patient(decode: Decode, outage: Outage) -> Decode:
    """Wrap `decode` to wait and try again when it raises RetryLaterError."""

    def decode_in_the_end(record: Record) -> Sample | Rows | None:
        while True:
            try:
                sample = decode(record)
            except RetryLaterError as error:
                for _ in outage.wait(record, error):
                    pass
            else:
                outage.over()
                return sample

    return decode_in_the_end
