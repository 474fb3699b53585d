"""Health of a worker: whether it has started, whether it lives and whether it is ready."""

import time
from collections.abc import Callable
from enum import StrEnum

from stream_learner.text import printable


class Phase(StrEnum):
    """Current activity of a worker."""

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
# Before the loop runs there are no beats. Lookups, downloads and restoring have their own time-outs.
WITHOUT_BEATS = (Phase.STARTING, Phase.RECOVERING)


class Answer(StrEnum):
    """Kinds of requests for which the time of the last answer is stored."""

    FETCH = "fetch"
    COMMIT = "commit"
    METADATA = "metadata"


class Health:
    """State behind the health pages. Each method reads or sets one attribute, so any thread may call it.

    No method asks Kafka: an outage of the brokers must not get the worker killed.
    """

    def __init__(
        self, live_timeout_s: float, request_timeout_s: float = 30.0, clock: Callable[[], float] = time.monotonic
    ):
        """Take the time-outs `monitoring.live_timeout_s` and `kafka.request_timeout_s`."""
        self._live_timeout_s = live_timeout_s
        self._request_timeout_s = request_timeout_s
        self._clock = clock
        self._heartbeat_s = self._heard_s = self._fetched_s = clock()
        self.phase = Phase.STARTING
        self.unanswered: tuple[str, float] = "", 0.0
        """The input partition with the oldest unanswered fetch, and the age of this fetch in seconds, or 0."""
        self.waits_for: str | None = None
        """Reason to wait: a record format has asked for it, or other ranks have not started yet."""
        self.answered_at = dict.fromkeys(Answer, time.time())
        """Time of the last answer to each kind of request, in seconds since 1970; at first the start of the process."""

    def heard(self, answer: str) -> None:
        """Note that the brokers answered a request."""
        self.answered_at[Answer(answer)] = time.time()
        self._heard_s = self._clock()
        if answer == Answer.FETCH:
            self._fetched_s = self._heard_s

    def wait_for(self, what: str | None) -> None:
        """Set the reason why the worker waits, or None if it does not wait."""
        self.waits_for = what and printable(what)  # a message of a format may quote a record

    @property
    def silence_s(self) -> float:
        """Seconds since the last answer of the brokers, or the age of the oldest unanswered fetch if that is more."""
        return max(self._clock() - self._heard_s, self.unanswered[1])

    @property
    def cut_off_s(self) -> float:
        """Seconds in which the brokers answered no request, or no fetch of any partition while a fetch was pending.

        Unlike `silence_s`, this is small if fetches of other partitions are answered. So a worker that can still read a
        part of the input does not give up.
        """
        now = self._clock()
        return max(now - self._heard_s, min(self.unanswered[1], now - self._fetched_s))

    def enter(self, phase: Phase) -> None:
        """Begin a phase. This counts as a turn of the loop."""
        self.beat()
        self.phase = phase

    def beat(self) -> None:
        """Note that the loop made a turn."""
        self._heartbeat_s = self._clock()

    def why_not_started(self) -> str | None:
        """Return the reason why the worker has not started, None once it learns or stands by."""
        return WHY_NOT_READY[self.phase] if self.phase in WITHOUT_BEATS else None

    def why_not_live(self) -> str | None:
        """Return the reason why the worker is not live, None while the loop beats or before its first beat."""
        silence_s = self._clock() - self._heartbeat_s
        if self.phase in WITHOUT_BEATS or silence_s <= self._live_timeout_s:
            return None
        return f"the loop made no turn for {silence_s:.0f} s (monitoring.live_timeout_s = {self._live_timeout_s:g})"

    def why_not_ready(self) -> str | None:
        """Return the reason why the worker is not ready, None while it learns or waits for records."""
        return self.why_not_live() or self._why_cut_off() or self.waits_for or WHY_NOT_READY[self.phase]

    def _why_cut_off(self) -> str | None:
        """Return the reason why the worker counts as cut off, None while it starts or the brokers answer."""
        silence_s = self.silence_s
        if self.phase is Phase.STARTING or silence_s <= self._request_timeout_s:
            return None
        place, unanswered_s = self.unanswered
        what = f" a fetch of {place}" if unanswered_s == silence_s else ""
        return (
            f"Kafka has not answered{what} for {silence_s:.0f} s (kafka.request_timeout_s = "
            f"{self._request_timeout_s:g})"
        )
