"""Whether the worker has started, lives and is ready: three questions with different answers."""

import time
from collections.abc import Callable
from enum import StrEnum


class Phase(StrEnum):
    """What a worker is doing."""

    STARTING = "starting"
    STANDBY = "standby"
    RECOVERING = "recovering"
    LEARNING = "learning"
    WAITING = "waiting"
    STOPPING = "stopping"


WHY_NOT_READY = {
    Phase.STARTING: "starting: settings, topics and the newest checkpoint are being checked",
    Phase.STANDBY: "standing by: another worker of the run is learning",
    Phase.RECOVERING: "recovering: the run is being taken over",
    Phase.LEARNING: None,
    Phase.WAITING: "waiting for a checkpoint to be written",
    Phase.STOPPING: "stopping",
}
# Before the loop turns there are no beats: looking up, fetching and restoring have time-outs of their own.
WITHOUT_BEATS = (Phase.STARTING, Phase.RECOVERING)


class Answer(StrEnum):
    """Requests whose last answer from the brokers is remembered."""

    FETCH = "fetch"
    COMMIT = "commit"
    METADATA = "metadata"


class Health:
    """What the health pages say. Each method returns or sets one attribute, so any thread may call it.

    Kafka is never asked: a broker's outage must not get the worker killed.
    """

    def __init__(
        self, live_timeout_s: float, request_timeout_s: float = 30.0, clock: Callable[[], float] = time.monotonic
    ):
        """The time-outs are those of the settings, `monitoring.` and `kafka.`."""
        self._live_timeout_s = live_timeout_s
        self._request_timeout_s = request_timeout_s
        self._clock = clock
        self._heartbeat_s = self._heard_s = self._fetched_s = clock()
        self.phase = Phase.STARTING
        self.unanswered: tuple[str, float] = "", 0.0
        """The partition of the input whose records the brokers have been asked for longest without an answer, and for
        how many seconds; 0 if none waits."""
        self.answered_at = dict.fromkeys(Answer, time.time())
        """When the brokers last answered each request, in seconds since 1970; the start before the first answer."""

    def heard(self, answer: str) -> None:
        """The brokers answered a request."""
        self.answered_at[Answer(answer)] = time.time()
        self._heard_s = self._clock()
        if answer == Answer.FETCH:
            self._fetched_s = self._heard_s

    @property
    def silence_s(self) -> float:
        """Seconds since the brokers last answered anything, or have not answered for a partition if that is more."""
        return max(self._clock() - self._heard_s, self.unanswered[1])

    @property
    def cut_off_s(self) -> float:
        """The same, as long as they answer for no partition: a part of the input may be worth more than none."""
        now = self._clock()
        return max(now - self._heard_s, min(self.unanswered[1], now - self._fetched_s))

    def enter(self, phase: Phase) -> None:
        self.beat()
        self.phase = phase

    def beat(self) -> None:
        """The loop made a turn."""
        self._heartbeat_s = self._clock()

    def why_not_started(self) -> str | None:
        """None once the worker learns or stands by."""
        return WHY_NOT_READY[self.phase] if self.phase in WITHOUT_BEATS else None

    def why_not_live(self) -> str | None:
        """None while the loop beats, and before it does."""
        silence_s = self._clock() - self._heartbeat_s
        if self.phase in WITHOUT_BEATS or silence_s <= self._live_timeout_s:
            return None
        return f"the loop made no turn for {silence_s:.0f} s (monitoring.live_timeout_s = {self._live_timeout_s:g})"

    def why_not_ready(self) -> str | None:
        """None while records are being learned, or would be if any came."""
        return self.why_not_live() or self._why_cut_off() or WHY_NOT_READY[self.phase]

    def _why_cut_off(self) -> str | None:
        """None while the brokers answer, and before anybody listens for answers."""
        silence_s = self.silence_s
        if self.phase is Phase.STARTING or silence_s <= self._request_timeout_s:
            return None
        place, unanswered_s = self.unanswered
        what = f" a fetch of {place}" if unanswered_s == silence_s else ""
        return (
            f"Kafka has not answered{what} for {silence_s:.0f} s (kafka.request_timeout_s = "
            f"{self._request_timeout_s:g})"
        )
