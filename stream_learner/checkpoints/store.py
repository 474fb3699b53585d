"""Object store: objects are written once by key, and verified when they are read."""

import errno
import os
import stat
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit, urlunsplit
from urllib.request import url2pathname

import obstore
import structlog
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, from_url

from stream_learner.contract.manifest import digest
from stream_learner.contract.objects import Object
from stream_learner.errors import StateError, StoreError, UsageError

if TYPE_CHECKING:
    from obstore.store import RetryConfig

log = structlog.get_logger()

# For missing objects and missing rights, obstore raises Python's own FileNotFoundError and PermissionError.
FAILURES = (BaseError, OSError)

# Retries of one request to a bucket. They hide short failures. The caller gets, counts and retries longer failures.
# obstore's defaults would hide a failing store for three minutes.
RETRIES: "RetryConfig" = {"max_retries": 2, "retry_timeout": timedelta(seconds=10)}

Mode = Literal["create", "overwrite"]

# Too many bytes for a file system to store without allocating disk space, so that the trial detects a full disk.
TRIAL_BYTES = 64 * 1024
# A trial takes only seconds, so a killed process must have left older trial objects behind.
TRIAL_AGE = timedelta(hours=1)


class Store:
    """A folder or a bucket that holds objects. Keys are relative to the store, so that the store can be moved.

    Every method raises StateError for a key that leads out of the store, by its segments or through a symbolic link.
    """

    def __init__(self, location: str, *, create: bool = True):
        """Open a folder or a URL (`file://`, `s3://`, `gs://`, `az://`).

        Create a missing folder if `create` is true. Readers do not create it. Raises UsageError, StoreError.
        """
        if "://" not in location:
            location = Path(location).expanduser().resolve().as_uri()
        location = location.rstrip("/")
        self.url = _without_credentials(location)
        self._folder: Path | None = None
        self._mode: Mode = "create"
        try:
            if location.startswith("file://"):
                folder = Path(url2pathname(location.removeprefix("file://")))
                if create:
                    folder.mkdir(parents=True, exist_ok=True)
                elif not folder.is_dir():
                    raise StoreError(
                        f"checkpoint.store {self.url} is missing; set it to where the run's objects are, or start the "
                        "worker, which creates it"
                    )
                self._folder = folder.resolve()
                self._store = LocalStore(self._folder)
            else:
                self._store = from_url(location, retry_config=RETRIES)
        except OSError as error:
            raise StoreError(
                f"checkpoint.store {self.url} cannot be used: {error.strerror or error}. Repair it, give the worker "
                "the rights, or set checkpoint.store to another place"
            ) from error
        except (BaseError, ValueError) as error:
            why = _line(error).replace(location, self.url)
            raise UsageError(f"checkpoint.store = {self.url!r} is not a folder or a known URL: {why}") from error

    def try_out(self, folder: str) -> None:
        """Try all operations that a worker needs on an object below `folder`, and choose the write mode.

        Also delete objects that killed processes left there. Raises StoreError that names the failed operation.
        """
        key, data = f"{folder}/{uuid.uuid4()}", os.urandom(TRIAL_BYTES)
        try:
            self.delete([key])  # deletes nothing, but fails before the first write if the right to delete is missing
            self._try_create_only(key, data)
            if self.get(key) != data:
                raise StoreError(f"object {self.url}/{key} was read back with other bytes than were written")
            written = self.times(f"{folder}/")
            if key not in written:
                raise StoreError(f"object {self.url}/{key} was just written, but is not listed")
            self.delete([key, *(other for other, time in written.items() if written[key] - time > TRIAL_AGE)])
        except StoreError as error:
            with suppress(StoreError):
                self.delete([key])
            raise StoreError(
                f"checkpoint.store {self.url} failed a trial: {error}. A worker must be able to write, read, list and "
                "delete objects there: free disk space, give it the rights, or set checkpoint.store to another place"
            ) from error

    def _try_create_only(self, key: str, data: bytes) -> None:
        """Write an object create-only. If the store does not support that, switch to overwriting.

        File systems without hard links (SMB, many with FUSE) and some buckets do not support it. Overwriting is
        safe too: two writers never choose the same name, except for small objects with the same content.
        """
        try:
            self._put(key, data, "create")
        except FAILURES as error:  # AlreadyExistsError too, because no other process writes to this key
            why = _line(error)
        else:
            try:
                self._put(key, data, "create")
                why = "an existing object was overwritten"
            except AlreadyExistsError:
                return
            except FAILURES as error:
                raise StoreError(f"object {self.url}/{key} cannot be written again: {_line(error)}") from error
        self._mode = "overwrite"
        self.put(key, data)
        log.info(
            "checkpoint.store does not support create-only writes; writes may replace objects, which is safe because "
            "the names of objects are unique",
            why=why,
        )

    def put(self, key: str, data: bytes) -> Object:
        """Write an object that must not exist yet, durably. Raises StoreError."""
        try:
            self._put(key, data, self._mode)
        except AlreadyExistsError as error:
            raise StoreError(f"object {self.url}/{key} exists already; objects are written once") from error
        except FAILURES as error:
            raise StoreError(f"object {self.url}/{key} cannot be written: {_line(error)}") from error
        return Object(key, len(data), digest(data))

    def _put(self, key: str, data: bytes, mode: Mode) -> None:
        path = self._checked(key)
        # No multipart upload: if the process were killed, the upload's parts would stay in the bucket, unlisted.
        obstore.put(self._store, key, data, mode=mode, use_multipart=False)
        if path and self._folder:
            _flush(path, self._folder)

    def replace(self, key: str, data: bytes) -> None:
        """Write a small object, or replace it if it exists. Raises StoreError.

        The object is not flushed, so a power failure may undo the write.
        """
        self._checked(key)
        try:
            obstore.put(self._store, key, data, use_multipart=False)
        except FAILURES as error:
            raise StoreError(f"object {self.url}/{key} cannot be written: {_line(error)}") from error

    def get(self, key: str, max_bytes: int | None = None) -> bytes | None:
        """Return an object's bytes, or None if the object does not exist.

        Raises StoreError, and StateError when the object is larger than `max_bytes`. Such an object is not read.
        """
        path = self._checked(key)
        try:
            if path and path.exists() and not path.is_file():  # reading a named pipe would wait
                raise StateError(f"{self.url}/{key} is not a file; restore it from a backup. Nothing was changed")
            found = obstore.get(self._store, key)
            if max_bytes is not None and found.meta["size"] > max_bytes:
                raise StateError(
                    f"object {self.url}/{key} is not the one that was written ({found.meta['size']} bytes, more than "
                    f"{max_bytes}); restore it from a backup. Nothing was changed"
                )
            return bytes(found.bytes())
        except FileNotFoundError:
            return None
        except FAILURES as error:
            raise StoreError(f"object {self.url}/{key} cannot be read: {_line(error)}") from error

    def fetch(self, reference: Object) -> bytes:
        """Return the bytes of an object that a manifest names.

        Raises StateError when the object is missing or holds other bytes, StoreError.
        """
        data = self.get(reference.key, reference.size)
        if data is None:
            raise StateError(
                f"object {self.url}/{reference.key}, which a manifest names, is missing; restore it from a backup, "
                "or set checkpoint.store to where the run's objects are. Nothing was changed"
            )
        if len(data) != reference.size or digest(data) != reference.digest:
            raise StateError(
                f"object {self.url}/{reference.key} is not the one a manifest names ({len(data)} bytes with "
                f"{digest(data)}, not {reference.size} with {reference.digest}); restore it from a backup. Nothing was "
                "changed"
            )
        return data

    def fetch_all(self, references: Iterable[Object], known: Mapping[str, bytes]) -> dict[str, bytes]:
        """Return the bytes of objects by digest. Do not read objects in `known`. Raises the errors of `fetch`."""
        return {r.digest: known[r.digest] if r.digest in known else self.fetch(r) for r in references}

    def times(self, prefix: str) -> dict[str, datetime]:
        """Return each key under a folder with its time of writing by the store's clock. Raises StoreError.

        Files that a killed process left half written are included. Symbolic links, files behind them, and names that
        are not valid keys are left out.
        """
        path = self._checked(prefix.removesuffix("/"))
        try:
            if path and self._folder:
                found = _times(path, self._folder)
            else:
                found = {o["path"]: o["last_modified"] for chunk in obstore.list(self._store, prefix) for o in chunk}
        except FAILURES as error:
            raise StoreError(f"objects under {self.url}/{prefix} cannot be listed: {_line(error)}") from error
        return {key: time for key, time in found.items() if _is_key(key)}

    def delete(self, keys: list[str]) -> None:
        """Delete objects. A missing object is not an error. Raises StoreError."""
        for key in keys:
            path = self._checked(key)
            try:
                if path and self._folder:
                    _delete(path, self._folder)
                else:
                    obstore.delete(self._store, key)
            except FileNotFoundError:
                continue
            except FAILURES as error:
                raise StoreError(f"object {self.url}/{key} cannot be deleted: {_line(error)}") from error

    def _checked(self, key: str) -> Path | None:
        """Return the file of a key, None in a bucket. Raises StateError when the key would lead out of the store."""
        if not _is_key(key):
            raise StateError(f"{key!r} is not the key of an object in checkpoint.store {self.url}. Nothing was changed")
        if self._folder is None:
            return None
        path = self._folder / key
        if os.path.realpath(path) != str(path):
            raise StateError(
                f"{self.url}/{key} is a symbolic link or lies behind one, and objects are neither read nor deleted "
                "through links. Replace the link with the run's own folder, or set checkpoint.store to that folder"
            )
        return path


def check_location(location: str) -> None:
    """Raise UsageError when a location is an invalid URL. Do not create a folder or contact a bucket."""
    if "://" in location and not location.startswith("file://"):
        Store(location)


def _is_key(key: str) -> bool:
    segments = key.split("/")
    return all(segments) and not {".", ".."} & {*segments} and "\\" not in key and key.isprintable()


def _without_credentials(url: str) -> str:
    """Return the URL without user, password and query, which may hold secrets."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url  # refused later
    user, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=host if ":" in user else parts.netloc, query="", fragment=""))


def _flush(path: Path, root: Path) -> None:
    # Flush the file, then each folder on its path, so that a state that a manifest names survives a power failure.
    for place in (path, *(parent for parent in path.parents if parent == root or root in parent.parents)):
        descriptor = os.open(place, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            # EINVAL: the file system does not support fsync(2) here. Old SMB clients do not support it for folders,
            # because they write folder entries at once.
            if place == path or error.errno != errno.EINVAL:
                raise
        finally:
            os.close(descriptor)


def _times(folder: Path, root: Path) -> dict[str, datetime]:
    """Return the keys of the files below a folder, with their times. Include files that a killed process left behind.

    obstore first writes a file under a temporary name, and does not list such files.
    """

    def failed(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    times = {}
    for parent, _, names in os.walk(folder, onerror=failed, followlinks=False):
        for path in (Path(parent, name) for name in names):
            with suppress(FileNotFoundError):  # deleted in the meantime
                found = path.lstat()
                if stat.S_ISREG(found.st_mode):
                    times[path.relative_to(root).as_posix()] = datetime.fromtimestamp(found.st_mtime, UTC)
    return times


def _delete(path: Path, root: Path) -> None:
    """Delete a file, and the folders that become empty. obstore refuses to delete files under temporary names."""
    path.unlink()
    for folder in path.parents[: path.parents.index(root)]:
        try:
            folder.rmdir()
        except OSError:  # not empty
            return


def _line(error: BaseException) -> str:
    # obstore appends a debug dump to its messages.
    return str(error).split("\n\nDebug source", 1)[0]
