"""How a command is asked to end, and ends."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

from stream_learner.errors import ExitCode

# From a signal at the start to the end: enough to leave the election, so that the next start need not wait for it.
LEAVE_S = 0.5


def stop_on_signals(deadline_s: Callable[[], float], at_once: Callable[[], bool] = lambda: False) -> threading.Event:
    """Set by the first signal that asks to end, which must be obeyed in time; a second one ends the process at once.

    Where `at_once` says so the first one does, with 0, after a moment in which the event may end it as well.
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
            end_within(LEAVE_S, ExitCode.OK)
        else:
            end_within(deadline_s(), ExitCode.WATCHDOG)
        os.read(arrived, 1)
        end_process(ExitCode.INTERRUPTED)

    # Python's own handlers run on the main thread, which may be waiting for a broker in a way that no signal ends. So
    # they do nothing, and Python writes to a pipe, whichever thread gets the signal: some start before this program
    # (`sitecustomize`, as OpenTelemetry has one). Threads that start later are not interrupted.
    os.set_blocking(arrival, False)
    signal.set_wakeup_fd(arrival, warn_on_full_buffer=False)
    for number in signals:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    threading.Thread(target=listen, name="signals", daemon=True).start()
    return stop


def obeyed() -> set[signal.Signals]:
    """Signals that ask a command to end. `nohup` has SIGHUP ignored, which is left so."""
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    return {number for number in signals if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN}


def end_process(code: ExitCode) -> NoReturn:
    """Ends the process here and now, from any thread, without the clean-up that could publish or delete anything."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
