"""Directories of releases for other servers. No reader ever sees half of a release.

A release is written beside the others under a temporary name, and then renamed. After that, one more rename makes it
the current one. A process that is killed leaves at most a temporary name, which the next one removes.
"""

import fcntl
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar, Self

import msgspec

from stream_learner.contract.pins import Chosen
from stream_learner.errors import StateError, StoreError, UsageError
from stream_learner.follow.releases import Release
from stream_learner.follow.signing import SIGNATURE, Signer
from stream_learner.inference.onnx_file import self_contained

# Temporary names: a release that is written, one that is deleted, and what will name the current one.
NEW, OLD, NEXT = ".stream-learner-new", ".stream-learner-old", ".stream-learner-next"
MANIFEST = "manifest.json"
# A server has the versions of one model, so releases of a later epoch need other numbers.
VERSIONS_OF_AN_EPOCH = 10**9


class _Object(msgspec.Struct, frozen=True):
    digest: str


class _Release(msgspec.Struct, frozen=True):
    sequence: int
    object: _Object


class _Written(msgspec.Struct, frozen=True):
    """The part of a release's manifest that identifies the release."""

    run_id: str
    epoch: int
    release: _Release


class Directory(ABC):
    """A directory with a folder for each release of a run. One process at a time writes it.

    All methods raise StoreError when the directory cannot be written.
    """

    names: ClassVar[re.Pattern[str]]
    """Names of the folders of releases."""

    def __init__(self, path: Path, keep: int | None = None, signer: Signer | None = None):
        """Create the directory, or continue it.

        `keep` is the number of newest releases that are not deleted. `signer` signs each release's folder. Raises
        UsageError when another process writes the directory.
        """
        self.path = path.absolute()
        self._keep = keep
        self._signer = signer
        with self._writing():
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock()
            for name in (NEW, OLD, NEXT):
                self._delete(name)

    def put(self, release: Release) -> Path:
        """Write a release if it is not there, make it the current one, and delete the ones that are not kept.

        Return the release's folder. Raises StateError when the release lacks what the layout needs.
        """
        written = _Written(
            release.manifest.run_id,
            release.manifest.epoch,
            _Release(release.described.sequence, _Object(release.described.object.digest)),
        )
        with self._writing():
            name = self._put(release, written)
            self._make_current(name, release)
            self._delete_old(name, written.run_id)
        return self.path / name

    def withdraw(self, releases: Set[Chosen]) -> None:  # noqa: B027
        """Do nothing: `put` has made another release the current one, and `keep` deletes the folders later."""

    def close(self) -> None:
        """Let other processes write the directory."""
        os.close(self._locked)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def _name(self, epoch: int, sequence: int, attempt: int) -> str:
        """Return the name of a release's folder, and other names with `attempt` 1, 2 and so on."""

    @abstractmethod
    def _files(self, release: Release) -> dict[str, bytes]:
        """Return the files of a release. Raises StateError when it lacks what the layout needs."""

    @abstractmethod
    def _make_current(self, name: str, release: Release) -> None: ...

    def _lock(self) -> None:
        self._locked = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another process writes releases to {self.path}; use another directory") from None

    def _put(self, release: Release, written: _Written) -> str:
        """Write a release if it is not there. Return the name of its folder."""
        attempt = 0
        name = self._name(*release.order, attempt)
        # A name is taken by another release when the run's topics were created again, or by an unsigned folder.
        while os.path.lexists(self.path / name) and not (self._written(name) == written and self._is_signed(name)):
            attempt += 1
            name = self._name(*release.order, attempt)
        if not os.path.lexists(self.path / name):
            self._write(name, self._files(release))
        return name

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"{self.path} cannot be written: {error.strerror}; free disk space, give the rights, or use another "
                "directory"
            ) from None

    def _is_signed(self, name: str) -> bool:
        return self._signer is None or (self.path / name / SIGNATURE).is_file()

    def _write(self, name: str, files: dict[str, bytes]) -> None:
        # The signature holds the name of the folder. Therefore the folder has its name before it is renamed.
        new = self.path / NEW / name
        new.mkdir(parents=True)
        try:
            for file, content in files.items():
                path = new / file
                path.parent.mkdir(parents=True, exist_ok=True)
                write(path, content)
            if self._signer:
                self._signer.sign(new)
            for folder, _, _ in os.walk(new):
                sync(Path(folder))
            new.rename(self.path / name)
            new.parent.rmdir()
        except BaseException:
            shutil.rmtree(self.path / NEW, ignore_errors=True)
            raise
        sync(self.path)

    def _written(self, name: str) -> _Written | None:
        """Return which release a folder holds, None when this program did not write it."""
        folder = self.path / name
        if not self.names.fullmatch(name) or folder.is_symlink():
            return None
        with suppress(OSError, msgspec.DecodeError):
            return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=_Written)

    def _delete_old(self, current: str, run_id: str) -> None:
        if self._keep is None:
            return
        written = {name: self._written(name) for name in os.listdir(self.path) if name != current}
        others = [name for name, found in written.items() if found and found.run_id == run_id]
        others.sort(key=lambda name: ((self.path / name).stat().st_mtime_ns, name), reverse=True)
        for name in others[self._keep - 1 :]:
            (self.path / name).rename(self.path / OLD)
            self._delete(OLD)

    def _delete(self, temporary: str) -> None:
        path = self.path / temporary
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


class Linked(Directory):
    """`<epoch>-<sequence>/` for each release, and a symbolic link `current` to the newest one."""

    names = re.compile(r"\d{4,}-\d{8,}(\.\d+)?")

    def _name(self, epoch: int, sequence: int, attempt: int) -> str:
        return f"{epoch:04}-{sequence:08}" + (f".{attempt}" if attempt else "")

    def _make_current(self, name: str, release: Release) -> None:  # noqa: ARG002
        link, current = self.path / NEXT, self.path / "current"
        if current.is_symlink() and os.readlink(current) == name:
            return
        link.symlink_to(name)
        link.replace(current)
        sync(self.path)


class Versioned(Directory):
    """`<version>/` for each release of a model, and a file that names the version to use.

    The version is the release's sequence. Labels and the number of classes may differ between versions. Therefore the
    file describes one version, and is replaced when the version is complete.
    """

    names = re.compile(r"[1-9]\d*")
    chooser: ClassVar[str]
    """Name of the file that names the version to use."""

    def _name(self, epoch: int, sequence: int, attempt: int) -> str:
        return str((epoch - 1 + attempt) * VERSIONS_OF_AN_EPOCH + sequence)

    def _make_current(self, name: str, release: Release) -> None:
        self._replace(self.chooser, self._choice(name, release))

    @abstractmethod
    def _choice(self, version: str, release: Release) -> bytes:
        """Return the content of the file that names the version to use."""

    def _replace(self, name: str, content: bytes) -> None:
        """Write a file beside the releases, unless it has this content already."""
        file, new = self.path / name, self.path / NEW
        if file.is_file() and file.read_bytes() == content:
            return
        write(new, content)
        new.replace(file)
        sync(self.path)


def model_of(release: Release, layout: str) -> bytes:
    """Return the release as one ONNX file. Raises StateError when the release has no graph, which the layout needs."""
    if release.graph is None:
        why = release.described.missing_formats.get("onnx", "see release.formats of the worker")
        raise StateError(f"{release} has no ONNX graph ({why}), which the layout {layout} needs")
    try:
        return self_contained(release.graph, release.arrays())
    except ValueError as error:
        raise StateError(f"{release} cannot be written as one ONNX file: {error}; wait for the next release") from None


def write(file: Path, content: bytes) -> None:
    """Write a file that does not exist, and make its content durable."""
    with file.open("xb") as written:
        written.write(content)
        written.flush()
        os.fsync(written.fileno())


def sync(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
