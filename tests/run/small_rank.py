"""A gang whose ranks only send heartbeats: `python small_rank.py RANKS FOLDER [RANK=DEED ...]` launches it.

A deed is `fail:CODE`, `exit` (without leaving), `hold:SECONDS` (of Python's global lock) or `signal:NUMBER`. A rank
without a deed waits. All ranks leave once the file `leave` exists in the folder.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

BEAT_S = 0.1
POLL_S = 0.01


def main() -> None:
    ranks, folder, deeds = int(sys.argv[1]), Path(sys.argv[2]), dict(deed.split("=") for deed in sys.argv[3:])
    if "RANK" not in os.environ:
        launch(ranks)
    rank = int(os.environ["RANK"])
    from stream_learner.errors import ExitCode
    from stream_learner.run.heartbeats import Heartbeats, connections

    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())

    def shared(value: str) -> str:
        if rank == 0:
            (folder / "draft").write_text(value)
            (folder / "draft").rename(folder / "address")
        until(folder / "address")
        return (folder / "address").read_text()

    def end(reason: str) -> None:
        (folder / f"reason{rank}").write_text(reason)
        os._exit(ExitCode.RANK)

    heartbeats = Heartbeats(rank, connections(rank, ranks, os.environ["MASTER_ADDR"], shared), end, BEAT_S)
    (folder / "draft").with_suffix(f".{rank}").write_text(str(os.getpid()))
    (folder / f"draft.{rank}").rename(folder / f"pid{rank}")
    what, _, figure = deeds.get(str(rank), "").partition(":")
    if what:
        until(*(folder / f"pid{other}" for other in range(ranks)))
    match what:
        case "fail":
            os._exit(int(figure))
        case "hold":
            ctypes.PyDLL(None).usleep(int(float(figure) * 1e6))
            (folder / "held").touch()
        case "signal":
            os.kill(os.getpid(), int(figure))
    while not asked.is_set() and not (folder / "leave").exists():
        time.sleep(POLL_S)
    heartbeats.leave()
    (folder / f"left{rank}").touch()


def launch(ranks: int) -> None:
    from stream_learner.errors import StreamLearnerError
    from stream_learner.run import launcher

    try:
        sys.exit(launcher.launch(ranks, [sys.executable, *sys.argv]))
    except StreamLearnerError as error:
        print(error, file=sys.stderr)
        sys.exit(error.code)


def until(*paths: Path) -> None:
    while not all(path.exists() for path in paths):
        time.sleep(POLL_S)


if __name__ == "__main__":
    main()
