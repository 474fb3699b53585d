"""Elect the active worker of a run by Kafka's group membership.

Two workers may both believe that they are active. Then fencing protects the run.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Protocol

import structlog

from stream_learner.checkpoints.store import Store
from stream_learner.config import Settings
from stream_learner.errors import ConflictError, ExitCode, InputError, KafkaUnavailableError, StoreError
from stream_learner.publishing.marker import forget_fenced, was_fenced, write_fenced

log = structlog.get_logger()

POLL_S = 0.2
LOOK_EVERY_S = 5.0
MARK_S = 5.0
# A worker that exits with one of these codes cannot know whether it was replaced.
MAYBE_REPLACED = (ExitCode.KAFKA, ExitCode.FENCED, ExitCode.PUBLISH, ExitCode.WATCHDOG, ExitCode.RANK)

EndProcess = Callable[[ExitCode], None]


class Election(Protocol):
    """The methods of `stream_learner.streams.election.Election` that are used here."""

    @property
    def elected(self) -> bool | None: ...
    def poll(self, timeout_s: float = 0.0) -> None: ...
    def check_members(self) -> None: ...
    def take_over(self) -> None: ...
    def confirm(self) -> None: ...


class StopEvent(Protocol):
    def is_set(self) -> bool: ...


def first_look(settings: Settings, look: Callable[[], None]) -> None:
    """Fail before touching the active worker if the settings do not match the run. Raises the errors of `look`."""
    _look(look, forgiving=() if settings.run.on_conflict == "take_over" else (InputError,))


def await_turn(
    settings: Settings,
    store: Store,
    election: Election,
    stop: StopEvent,
    stand_by: Callable[[], None],
    look: Callable[[], None],
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Wait until this worker is elected. Return False if it is stopped earlier.

    While another worker is active, call `stand_by` at every poll. Call `look` every few seconds on a separate thread:
    it fetches the newest checkpoint, so that a take-over is quick. Raises StateError when the active worker belongs to
    another run, ConflictError, StoreError, KafkaUnavailableError, and the errors of `look`.
    """
    on_conflict = settings.run.on_conflict
    if on_conflict == "take_over" and was_fenced(store, settings):
        log.info("this worker was, or may have been, replaced, so it comes back as a standby")
        on_conflict = "standby"
    if on_conflict == "take_over":
        election.take_over()
    # The brokers admit no new member until the session of a silent member has timed out.
    deadline = clock() + settings.recovery.timeout_s + settings.run.session_timeout_s
    looked_at, standing_by = clock(), False
    with ThreadPoolExecutor(1, "look") as thread:
        looking: Future[None] | None = None
        # An elected worker waits for the end of a look. Meanwhile it stays a member of the group.
        while not election.elected or (looking is not None and not looking.done()):
            if stop.is_set():
                return False
            election.poll(POLL_S)
            if election.elected is None and not standing_by:
                if clock() > deadline:
                    raise KafkaUnavailableError(
                        f"the group {settings.standby_group} did not admit this worker within recovery.timeout_s = "
                        f"{settings.recovery.timeout_s:g} and run.session_timeout_s; check that the brokers are up"
                    )
            elif election.elected:
                if looking is not None and wait([looking], POLL_S).not_done:
                    stand_by()
            else:
                if not standing_by:
                    election.check_members()
                if on_conflict == "exit":
                    raise ConflictError(
                        f"another worker of run {settings.run.id!r} is alive; stop it first, or let this worker stand "
                        "by (run.on_conflict = standby)"
                    )
                if not standing_by:
                    log.info("standing by: another worker of the run is learning")
                standing_by = True
                stand_by()
                if looking is not None and looking.done():
                    looking.result()
                    looking = None
                if looking is None and clock() >= looked_at + LOOK_EVERY_S:
                    looking = thread.submit(_look, look, forgiving=(StoreError, KafkaUnavailableError, InputError))
                    looked_at = clock()
        if looking is not None:
            looking.result()
    if standing_by:
        log.info("this worker was elected: it takes over the run")
    forget_fenced(store, settings)
    return True


def _look(look: Callable[[], None], forgiving: tuple[type[Exception], ...]) -> None:
    """Call `look`. Log errors in `forgiving` instead of raising them: the active worker may still work.

    A take-over checks again.
    """
    try:
        look()
    except forgiving as error:
        log.warning("the newest checkpoint could not be checked", error=str(error))


def fencing(election: Election, fence: Callable[[], None]) -> Callable[[], None]:
    """Return a function that checks the election, calls `fence`, and checks the election again.

    A failed check raises FencedError. A worker that was frozen since its election must not fence the worker that
    replaced it. If it is frozen after the first check and still fences, the second check ends it before it publishes.
    """

    def confirmed() -> None:
        election.confirm()
        fence()
        election.confirm()

    return confirmed


def leaving_a_mark(settings: Settings, store: Store, end_process: EndProcess) -> EndProcess:
    """Return an `end_process` that first writes a marker to the store if the exit code is one of `MAYBE_REPLACED`."""

    def leave() -> None:
        try:
            write_fenced(store, settings)
        except StoreError as error:
            log.warning("could not record that this worker was replaced", error=str(error))

    def end(code: ExitCode) -> None:
        if code in MAYBE_REPLACED:
            leaving = threading.Thread(target=leave, daemon=True)
            leaving.start()
            leaving.join(MARK_S)  # a store that hangs must not delay the end of the process
        end_process(code)

    return end
