"""Child processes of the demo. Each runs a command of this program, and is stopped however the demo ends."""

import subprocess
import sys
from pathlib import Path
from typing import Self

from stream_learner.errors import ExitCode, Remedy, StreamLearnerError
from stream_learner.local.broker import ENDS_WITH_PARENT

STOP_TIMEOUT_S = 90.0
RESTARTS = 20


class ChildError(StreamLearnerError):
    """Error for a child process that ended too early. `code` is the exit code of the process, if `ExitCode` has it."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = ExitCode(code) if code in list(ExitCode) else ExitCode.INTERNAL


class Child:
    """A `stream-learner` command in its own process, which writes its output to `log`. A context manager.

    The end of the context stops the process with SIGTERM, and with SIGKILL after STOP_TIMEOUT_S. The process has its
    own session, so that Ctrl-C in the terminal reaches only the demo.
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
        """Stop the process (SIGTERM), wait, and return its exit code. A second call sends no second signal."""
        assert self._process is not None
        if not self._asked:
            self._process.terminate()
            self._asked = True  # a second signal would end the process without a save
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
    """A worker that is started again when it dies, as a supervisor does in production."""

    restarts = 0

    def tend(self) -> None:
        """Start the worker again if it has ended.

        Raises ChildError if its exit code asks for a person, or after RESTARTS restarts.
        """
        code = self.ended()
        if code is None:
            return
        hopeless = code in list(ExitCode) and ExitCode(code).remedy is Remedy.PERSON
        if hopeless or self.restarts == RESTARTS:
            raise self.failure("worker", code)
        self.restarts += 1
        self.start()
