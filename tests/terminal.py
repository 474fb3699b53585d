"""A program in a terminal of 80 x 24: its output in order, and typed keys."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

DEADLINE_S = 120.0
CONTROLS = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\r")
CTRL_C = b"\x03"


class Terminal:
    """A context manager. `raw` is all that was written so far, `text` the same without control sequences."""

    def __init__(self, command: list[str], folder: Path, columns: int = 80, lines: int = 24, **environment: str):
        self._master, self._slave = pty.openpty()
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.modes = self.modes_now()
        self._written = b""
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            # The terminal's size is asked for, unless these say otherwise.
            env={k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
            | {"TERM": "xterm-256color"}
            | environment,
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            start_new_session=True,
            preexec_fn=self._control,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _control(self) -> None:
        """Make this the terminal that sends signals to the process."""
        fcntl.ioctl(self._slave, termios.TIOCSCTTY, 0)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # closed at both ends
                return
            with self._changed:
                self._written += data
                self._changed.notify_all()

    @property
    def raw(self) -> str:
        return self._written.decode(errors="replace")

    @property
    def text(self) -> str:
        return CONTROLS.sub("", self.raw)

    @property
    def cursor_is_shown(self) -> bool:
        return self.raw.rfind("\x1b[?25h") > self.raw.rfind("\x1b[?25l")

    def modes_now(self) -> list[Any]:
        """Return the terminal's modes (echo, line editing and such)."""
        return termios.tcgetattr(self._slave)

    def await_text(self, pattern: str, after: int = 0) -> re.Match[str]:
        """Return the first match in the text behind a place, once it is written."""
        with self._changed:
            found = self._changed.wait_for(lambda: re.search(pattern, self.text[after:]), DEADLINE_S)
        assert found, self.text[-4000:]
        return found

    def press(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def hang_up(self) -> None:
        """Close the terminal's window."""
        os.close(self._slave)
        os.close(self._master)
        self._slave = self._master = -1

    def wait(self) -> int:
        """Return the exit code."""
        return self.process.wait(DEADLINE_S)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        for descriptor in {self._slave, self._master} - {-1}:
            os.close(descriptor)
