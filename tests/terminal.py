"""A program in a terminal of 80 x 24: its output in order, and typed keys."""

import fcntl
import os
import pty
import re
import select
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
END = b"\0"
"""Written to the terminal behind the program's output."""


class Terminal:
    """A context manager. `raw` is all that was written so far, `text` the same without control sequences."""

    def __init__(self, command: list[str], folder: Path, columns: int = 80, lines: int = 24, **environment: str):
        self._master, self._slave = pty.openpty()
        self._stop = os.eventfd(0)
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
        while self._stop not in select.select([self._master, self._stop], [], [])[0]:
            data = os.read(self._master, 65536)
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
        if self._slave == -1:
            return
        os.eventfd_write(self._stop, 1)
        self._reader.join()  # it would read from whatever gets the number of its descriptor next
        for descriptor in (self._stop, self._slave, self._master):
            os.close(descriptor)
        self._slave = self._master = -1

    def wait(self) -> int:
        """Return the exit code, once all output is read."""
        code = self.process.wait(DEADLINE_S)
        if self._slave != -1:
            os.write(self._slave, END)  # the reader may not have read all yet
            with self._changed:
                assert self._changed.wait_for(lambda: END in self._written, DEADLINE_S)
                self._written = self._written.replace(END, b"")
        return code

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        self.hang_up()
