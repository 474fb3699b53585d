"""Objects by key: written once, verified when read."""

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

from stream_learner.contract.manifest import Object, digest
from stream_learner.errors import StateError, StoreError, UsageError

if TYPE_CHECKING:
    from obstore.store import RetryConfig

log = structlog.get_logger()

# obstore raises Python's own FileNotFoundError and PermissionError where they fit.
FAILURES = (BaseError, OSError)

# Of one request to a bucket: a hiccup goes unnoticed, and what lasts longer is the caller's to see, to count and to try
# again. obstore's own would hide a failing store for three minutes.
RETRIES: "RetryConfig" = {"max_retries": 2, "retry_timeout": timedelta(seconds=10)}

Mode = Literal["create", "overwrite"]

# More than a file system keeps beside a file's name, so that a full disk is noticed.
TRIAL_BYTES = 64 * 1024
# A trial takes seconds; what is older was left by a process that was killed.
TRIAL_AGE = timedelta(hours=1)


class Store:
    """A folder or a bucket. Keys are relative to it, so that it can move.

    No key leads out of it, neither by its segments nor, in a folder, by a symbolic link: every method raises StateError
    for such a key.
    """

    def __init__(self, location: str, *, create: bool = True):
        """Open a folder or a URL (`file://`, `s3://`, `gs://`, `az://`).

        A missing folder is made, unless `create` is False, as for those who only read. Raises UsageError, StoreError.
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
                    raise StoreError(f"checkpoint.store {self.url} is missing; set it to where the run's objects are")
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
        """Try on an object below `folder` everything that a worker asks of a store, and find out how it writes.

        Also delete what killed processes left there. Raises StoreError with what the store refuses.
        """
        key, data = f"{folder}/{uuid.uuid4()}", os.urandom(TRIAL_BYTES)
        try:
            self.delete([key])  # nothing: without the right to delete, nothing is written
            self._try_create_only(key, data)
            if self.get(key) != data:
                raise StoreError(f"object {self.url}/{key} was read back with other bytes than it was written with")
            written = self.times(f"{folder}/")
            if key not in written:
                raise StoreError(f"object {self.url}/{key} was just written and is not listed")
            self.delete([key, *(other for other, time in written.items() if written[key] - time > TRIAL_AGE)])
        except StoreError as error:
            with suppress(StoreError):
                self.delete([key])
            raise StoreError(
                f"checkpoint.store {self.url} failed a trial: {error}. A worker must be able to write, read, list and "
                "delete objects there: make room, give it the rights, or set checkpoint.store to another place"
            ) from error

    def _try_create_only(self, key: str, data: bytes) -> None:
        """Write an object, and let later ones be overwritten if the store cannot refuse to.

        File systems without hard links (SMB, many of FUSE) and some buckets cannot. Nothing depends on it: two writers
        never choose the same name, except for small objects that are the same whoever writes them.
        """
        try:
            self._put(key, data, "create")
        except FAILURES as error:  # AlreadyExistsError, too: nobody else writes to this key
            why = _line(error)
        else:
            try:
                self._put(key, data, "create")
                why = "an object that exists was written again"
            except AlreadyExistsError:
                return
            except FAILURES as error:
                raise StoreError(f"object {self.url}/{key} cannot be written again: {_line(error)}") from error
        self._mode = "overwrite"
        self.put(key, data)
        log.info(
            "checkpoint.store cannot write create-only; objects have unique names, so they are written without it",
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
        # Not in parts: a killed upload would leave them in the bucket, where no listing shows them.
        obstore.put(self._store, key, data, mode=mode, use_multipart=False)
        if path and self._folder:
            _flush(path, self._folder)

    def replace(self, key: str, data: bytes) -> None:
        """Write a small object, whether it exists or not. It is not flushed: a power cut may undo it. Raises
        StoreError."""
        self._checked(key)
        try:
            obstore.put(self._store, key, data, use_multipart=False)
        except FAILURES as error:
            raise StoreError(f"object {self.url}/{key} cannot be written: {_line(error)}") from error

    def get(self, key: str, max_bytes: int | None = None) -> bytes | None:
        """Return an object's bytes, None when there is none.

        Raises StoreError, and StateError when there are more than `max_bytes`; they are not read then.
        """
        path = self._checked(key)
        try:
            if path and path.exists() and not path.is_file():  # a named pipe would be waited for
                raise StateError(f"{self.url}/{key} is no file; bring it back from a backup. Nothing was changed")
            found = obstore.get(self._store, key)
            if max_bytes is not None and found.meta["size"] > max_bytes:
                raise StateError(
                    f"object {self.url}/{key} is not the one that was written ({found.meta['size']} bytes, more than "
                    f"{max_bytes}); bring it back from a backup. Nothing was changed"
                )
            return bytes(found.bytes())
        except FileNotFoundError:
            return None
        except FAILURES as error:
            raise StoreError(f"object {self.url}/{key} cannot be read: {_line(error)}") from error

    def fetch(self, reference: Object) -> bytes:
        """Return the bytes that a manifest names. Raises StateError when they are missing or others, StoreError."""
        data = self.get(reference.key, reference.size)
        if data is None:
            raise StateError(
                f"object {self.url}/{reference.key}, which a manifest names, is missing; bring it back from a backup, "
                "or set checkpoint.store to where the run's objects are. Nothing was changed"
            )
        if len(data) != reference.size or digest(data) != reference.digest:
            raise StateError(
                f"object {self.url}/{reference.key} is not the one a manifest names ({len(data)} bytes with "
                f"{digest(data)}, not {reference.size} with {reference.digest}); bring it back from a backup. Nothing "
                "was changed"
            )
        return data

    def fetch_all(self, references: Iterable[Object], known: Mapping[str, bytes]) -> dict[str, bytes]:
        """The bytes of objects by digest; those known already are not read again. Raises as `fetch` does."""
        return {r.digest: known[r.digest] if r.digest in known else self.fetch(r) for r in references}

    def times(self, prefix: str) -> dict[str, datetime]:
        """Return the keys under a folder, each with its time of writing by the store's clock. Raises StoreError.

        What a killed process left half written is listed. Symbolic links, what lies behind them, and names that are not
        keys are not listed.
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
        """Delete objects; one that is gone already is no error. Raises StoreError."""
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
        """Return the file of a key; None in a bucket. Raises StateError when the key would lead out of the store."""
        if not _is_key(key):
            raise StateError(f"{key!r} is not the key of an object in checkpoint.store {self.url}. Nothing was changed")
        if self._folder is None:
            return None
        path = self._folder / key
        if os.path.realpath(path) != str(path):
            raise StateError(
                f"{self.url}/{key} is a symbolic link or lies behind one; objects are neither read nor deleted through "
                "links. Put the run's own folder there, or set checkpoint.store to where it is"
            )
        return path


def check_location(location: str) -> None:
    """Raise UsageError when it is a URL that no store can have. Neither make a folder nor ask a bucket."""
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
        return url  # it is refused later
    user, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=host if ":" in user else parts.netloc, query="", fragment=""))


def _flush(path: Path, root: Path) -> None:
    # The bytes, then every folder entry on the way to them: a manifest must not outlive a power cut that its state did.
    for place in (path, *(parent for parent in path.parents if parent == root or root in parent.parents)):
        descriptor = os.open(place, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            # fsync(2): a file system that does not support it. Old SMB clients do not, for folders: they write entries
            # at once.
            if place == path or error.errno != errno.EINVAL:
                raise
        finally:
            os.close(descriptor)


def _times(folder: Path, root: Path) -> dict[str, datetime]:
    """Return the keys of the files below a folder, with their times.

    obstore does not list the files that it has not yet linked to their keys, which a killed process leaves behind.
    """

    def failed(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    times = {}
    for parent, _, names in os.walk(folder, onerror=failed, followlinks=False):
        for path in (Path(parent, name) for name in names):
            with suppress(FileNotFoundError):  # deleted meanwhile
                found = path.lstat()
                if stat.S_ISREG(found.st_mode):
                    times[path.relative_to(root).as_posix()] = datetime.fromtimestamp(found.st_mtime, UTC)
    return times


def _delete(path: Path, root: Path) -> None:
    """Deletes a file, staged ones too, which obstore refuses, and the folders that become empty by it."""
    path.unlink()
    for folder in path.parents[: path.parents.index(root)]:
        try:
            folder.rmdir()
        except OSError:  # not empty
            return


def _line(error: BaseException) -> str:
    # obstore appends a debug dump to its messages.
    return str(error).split("\n\nDebug source", 1)[0]
