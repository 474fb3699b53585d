"""Whether the worker has started, lives and is ready: three questions with different answers."""

import time
from collections.abc import Callable

STARTING = "starting: the run is being recovered"


class Health:
    """What the health pages say. Each method returns or sets one attribute, so any thread may call it.

    Kafka is never asked: a broker's outage must not get the worker killed.
    """

    def __init__(self, live_timeout_s: float, clock: Callable[[], float] = time.monotonic):
        self._live_timeout_s = live_timeout_s
        self._clock = clock
        self._heartbeat_s: float | None = None
        self._not_ready: str | None = STARTING

    def started(self) -> None:
        """Recovery is done; from now on the loop must beat."""
        self.beat()

    def beat(self) -> None:
        """The loop made a turn."""
        self._heartbeat_s = self._clock()

    def ready(self, is_ready: bool, why_not: str = "not learning") -> None:
        """Whether records are being learned; `why_not` is shown while they are not."""
        self._not_ready = None if is_ready else why_not

    def why_not_started(self) -> str | None:
        """None when started."""
        return STARTING if self._heartbeat_s is None else None

    def why_not_live(self) -> str | None:
        """None while the loop beats, and before the start, which has a time-out of its own."""
        if self._heartbeat_s is None:
            return None
        silence_s = self._clock() - self._heartbeat_s
        if silence_s <= self._live_timeout_s:
            return None
        return f"the loop made no turn for {silence_s:.0f} s (monitoring.live_timeout_s = {self._live_timeout_s:g})"

    def why_not_ready(self) -> str | None:
        """None while records are being learned."""
        return self.why_not_started() or self.why_not_live() or self._not_ready
