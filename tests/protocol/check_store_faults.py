"""A store that fails, fills up or is damaged: training continues where it can, and a start detects wrong objects."""

import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO

import child
import pytest
from child import Point
from feed import mixed
from harness import NewRun, Run
from object_server import CreateOnly, Fault, ObjectServer
from outputs import Log, named_objects

from stream_learner.checkpoints.retention import ORPHAN_AGE
from stream_learner.errors import ExitCode


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    server = ObjectServer()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    yield server
    server.close()


def test_a_bucket_that_fails_for_a_while(new_run: NewRun, server: ObjectServer) -> None:
    run = new_run(checkpoint__store="s3://bucket/objects", release__every_records=10_000)
    run.feed(mixed(300))
    worker = run.start()
    worker.reaches("checkpoint_sequence", 1)
    for sequence, fault in enumerate(Fault, start=2):
        failures = sum(worker.metric("store_failures_total").values())
        with server.failing(fault):
            run.feed(mixed(300))
            worker.reaches("store_failures_total", failures + 1)
            run.learned(worker)  # training continues
        worker.reaches("checkpoint_sequence", sequence)
    run.finish(worker)
    run.feed(mixed(300))
    for fault in (Fault.REFUSED, Fault.CUT):
        with server.failing(fault):
            assert "failed a trial" in run.start().ends(ExitCode.STORE)


def test_a_store_without_create_only(new_run: NewRun, server: ObjectServer) -> None:
    server.create_only = CreateOnly.NOT_IMPLEMENTED
    bucket = new_run(checkpoint__store="s3://bucket/objects", release__every_records=150)
    folder = new_run(release__every_records=150)
    for run, start in (
        (bucket, bucket.start),
        (folder, partial(folder.start_altered, child.without_hard_links, errno.EPERM)),
    ):
        run.feed(mixed(300))
        worker = start()
        run.finish(worker)
        assert worker.text().count("does not support create-only writes") == 1
    run.finish(run.start())


class Disk:
    """A small file system of its own, in a mount namespace that processes can enter (user_namespaces(7)): none of it is
    seen outside, and any user may make one."""

    def __init__(self, folder: Path, megabytes: int):
        folder.mkdir()
        self.folder = folder
        script = f"mount -t tmpfs -o size={megabytes}m disk '{folder}' && echo mounted && exec sleep infinity"
        command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
        self._keeper = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._keeper.stdout
        assert self._keeper.stdout.readline() == "mounted\n"
        self.enter = ["nsenter", f"--target={self._keeper.pid}", "--user", "--preserve-credentials", "--mount"]
        self.inside = Path(f"/proc/{self._keeper.pid}/root{folder}")

    def fill(self) -> Path:
        """Use all the space that is left. Return the file that does."""
        filler = self.inside / "filler"
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left on device"):
            write_without_end(file)
        return filler

    def remount(self, option: str) -> None:
        subprocess.run([*self.enter, "mount", "-o", f"remount,{option}", self.folder], check=True)

    def bring_out(self) -> None:
        """Copies what is on it to where it is mounted, for those outside."""
        shutil.copytree(self.inside, self.folder, dirs_exist_ok=True)

    def close(self) -> None:
        self._keeper.kill()
        self._keeper.communicate()


def write_without_end(file: IO[bytes]) -> None:
    while True:
        file.write(bytes(4096))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "disk", megabytes=32)
    yield disk
    disk.close()


def test_a_disk_that_fills_up_and_one_that_turns_read_only(new_run: NewRun, disk: Disk) -> None:
    run = new_run(checkpoint__store=str(disk.folder / "objects"), release__every_records=10_000)
    run.feed(mixed(300))
    worker = run.start_command(within=disk.enter)
    worker.reaches("checkpoint_sequence", 1)

    filler = disk.fill()
    run.feed(mixed(300))
    worker.until("a full disk", lambda: "No space left on device" in worker.text())
    run.learned(worker)  # training continues
    objects = disk.inside / "objects" / run.id
    worker.until("nothing half-written", lambda: not [path for path in objects.rglob("*") if "#" in path.name])
    filler.unlink()
    worker.reaches("checkpoint_sequence", 2)

    disk.remount("ro")
    run.feed(mixed(300))
    worker.until("a read-only disk", lambda: "Read-only file system" in worker.text())
    worker.reaches("store_failures_total", 2)
    run.learned(worker)
    worker.kill()
    text = run.start_command(within=disk.enter).ends(ExitCode.STORE)
    assert "failed a trial" in text
    assert "Read-only file system" in text

    disk.remount("rw")
    filler = disk.fill()
    text = run.start_command(within=disk.enter).ends(ExitCode.STORE)
    assert "No space left on device" in text
    assert "free disk space" in text
    filler.unlink()
    worker = run.start_command(within=disk.enter)
    run.learned(worker)
    worker.stop()
    disk.bring_out()
    run.check()


def path_of(run: Run, reference: dict[str, str]) -> Path:
    return run.store / reference["key"]


def released_state(log: Log) -> dict[str, str]:
    """The state that was saved with the last release."""
    release = log.manifest["release"]["sequence"]
    return next(kept["object"] for kept in log.manifest["kept"] if kept["sequence"] == release)


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def test_what_a_start_needs_is_damaged(finished: tuple[Run, Log]) -> None:
    run, log = finished
    state, released = path_of(run, log.manifest["state"]), path_of(run, released_state(log))
    marker = run.store / run.id / "run.json"
    newest, another = state.read_bytes(), released.read_bytes()
    cases = [
        (state, truncated, "is not the one"),
        (state, lambda _: another, "is not the one"),
        (released, truncated, "is not the one"),
        (released, flipped, "is not the one"),
        (released, lambda _: newest, "is not the one"),
        (released, None, "is missing"),
        (marker, truncated, "is damaged"),
        (marker, lambda _: b'{"cluster_id":"another","checkpoints_topic_id":"one","epoch":1}', "of another cluster"),
    ]
    for path, damage, message in cases:
        data = path.read_bytes()
        try:
            path.write_bytes(damage(data)) if damage else path.unlink()
            text = run.start().ends(ExitCode.STATE)
            assert message in text, path
            assert path.name in text or path == marker, path
        finally:
            path.write_bytes(data)
    worker = run.start()
    worker.learning()
    worker.stop()
    assert run.check() == log


def test_what_a_start_does_not_need_is_damaged(finished: tuple[Run, Log]) -> None:
    run, log = finished
    needed = log.manifest["state"], released_state(log)
    older = [path_of(run, kept["object"]) for kept in log.manifest["kept"] if kept["object"] not in needed]
    others = [*older, *(path_of(run, log.manifest["release"][name]) for name in ("object", "evaluation"))]
    before = {path: path.read_bytes() for path in others}
    assert len(before) > 2
    try:
        for path in others:
            path.unlink()
        worker = run.start()
        worker.learning()
        worker.stop()
    finally:
        for path, data in before.items():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
    assert run.check() == log


def test_what_a_killed_writer_leaves_is_swept(new_run: NewRun) -> None:
    run = new_run(release__every_records=200, checkpoint__keep=1)
    run.feed(mixed(1000))
    run.start_signalled(Point("store", "try_out", half=True)).ends(-signal.SIGXFSZ)
    run.start_signalled(Point("store", "put", 3, half=True)).ends(-signal.SIGXFSZ)
    half_written = [path for path in run.store.rglob("*") if "#" in path.name]
    assert len(half_written) == 2
    run.start_signalled(Point("transaction", "begin")).ends(-signal.SIGKILL)
    for path in run.store.rglob("*"):
        age_s = 2 * ORPHAN_AGE.total_seconds()
        os.utime(path, (path.stat().st_atime - age_s, path.stat().st_mtime - age_s))
    log = run.finish(run.start())
    assert run.objects() == {reference["key"] for reference in named_objects(log.manifest)} | {f"{run.id}/run.json"}
