"""Signals that ask a command to stop, and the end of the process."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

from stream_learner.errors import ExitCode

# Time in seconds from a signal that arrives during the start to the exit. This time is enough to leave the election, so
# that the next start does not wait.
LEAVE_S = 0.5


def stop_on_signals(
    deadline_s: Callable[[], float],
    at_once: Callable[[], bool] = lambda: False,
    leave_s: Callable[[], float] = lambda: LEAVE_S,
) -> threading.Event:
    """Return an event that the first stop signal sets. A second signal ends the process at once.

    If `at_once` returns true, the first signal ends the process with code 0 after `leave_s()` seconds. Otherwise the
    process ends with exit code WATCHDOG after `deadline_s()` seconds. The program itself may end earlier.
    """
    stop = threading.Event()
    signals = obeyed()
    arrived, arrival = os.pipe()

    def end_within(seconds: float, code: ExitCode) -> None:
        timer = threading.Timer(seconds, end_process, (code,))
        timer.daemon = True
        timer.start()

    def listen() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        os.read(arrived, 1)
        stop.set()
        if at_once():
            end_within(leave_s(), ExitCode.OK)
        else:
            end_within(deadline_s(), ExitCode.WATCHDOG)
        os.read(arrived, 1)
        end_process(ExitCode.INTERRUPTED)

    # Python runs signal handlers on the main thread, which may wait for a broker uninterruptibly. So the handlers do
    # nothing, and Python writes to a pipe, whichever thread gets the signal. Some threads start before this program,
    # for example threads of OpenTelemetry's `sitecustomize`, and may receive the signal. Threads that start later block
    # these signals, so their waits are not interrupted.
    os.set_blocking(arrival, False)
    signal.set_wakeup_fd(arrival, warn_on_full_buffer=False)
    for number in signals:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    threading.Thread(target=listen, name="signals", daemon=True).start()
    return stop


def obeyed() -> set[signal.Signals]:
    """Return the signals that ask a command to stop, without SIGHUP if `nohup` made the process ignore it."""
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    return {number for number in signals if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN}


def end_process(code: ExitCode) -> NoReturn:
    """End the process at once, from any thread, without clean-up that could publish or delete anything."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
