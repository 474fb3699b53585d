"""Child processes of the demo, which run commands of this program. They are stopped in every case."""

import subprocess
import sys
from pathlib import Path
from typing import Self

from stream_learner.errors import ExitCode, Remedy, StreamLearnerError
from stream_learner.local.broker import ENDS_WITH_PARENT

STOP_TIMEOUT_S = 90.0
RESTARTS = 20


class ChildError(StreamLearnerError):
    """Error for a child that ended too early, with its exit code."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = ExitCode(code) if code in list(ExitCode) else ExitCode.INTERNAL


class Child:
    """A `stream-learner` command in a process of its own, with its output in `log`. It is a context manager.

    Leaving it stops the process with SIGTERM, or with SIGKILL if that takes too long. The process has a session of its
    own, so that Ctrl-C in the terminal reaches only the demo itself.
    """

    def __init__(self, arguments: list[str], log: Path):
        self._arguments = arguments
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._asked = False
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*ENDS_WITH_PARENT, sys.executable, "-m", "stream_learner", *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def ended(self) -> int | None:
        """Return the exit code, None while the process runs."""
        return self._process.poll() if self._process else None

    def failure(self, what: str, code: int) -> ChildError:
        if code < 0:
            return ChildError(f"the {what} was ended by signal {-code}", ExitCode.INTERRUPTED)
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return ChildError(
            f"the {what} ended with code {code}: {lines[-1] if lines else 'no output'}; see {self._log}", code
        )

    def stop(self) -> int:
        """Ask the process to end, wait, and return its exit code. It is asked only once if this is called again."""
        assert self._process is not None
        if not self._asked:
            self._process.terminate()
            self._asked = True  # a second signal would end it at once
        try:
            return self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Supervised(Child):
    """A worker that is started again when it dies, as by a supervisor in production."""

    restarts = 0

    def tend(self) -> None:
        """Start the worker again if it ended in a way that a restart recovers. Raises ChildError otherwise."""
        code = self.ended()
        if code is None:
            return
        hopeless = code in list(ExitCode) and ExitCode(code).remedy is Remedy.PERSON
        if hopeless or self.restarts == RESTARTS:
            raise self.failure("worker", code)
        self.restarts += 1
        self.start()
