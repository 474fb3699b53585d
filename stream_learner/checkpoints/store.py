"""Objects by URL: written once, verified when read."""

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING
from urllib.request import url2pathname

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, from_url

from stream_learner.errors import StateError, StoreError, UsageError
from stream_learner.records.manifest import Object, digest

if TYPE_CHECKING:
    from obstore.store import RetryConfig

# obstore raises Python's own FileNotFoundError and PermissionError where they fit.
FAILURES = (BaseError, OSError)

# Of one request to a bucket: a hiccup goes unnoticed, and what lasts longer is the caller's to see, to count and to try
# again. obstore's own would hide a failing store for three minutes.
RETRIES: "RetryConfig" = {"max_retries": 2, "retry_timeout": timedelta(seconds=10)}
# What obstore writes before it is linked to its key; a killed process leaves it, and obstore does not list it.
STAGED = re.compile(r"#\d+$")


class Store:
    """A folder or a bucket. Keys are relative; URLs, in manifests, are absolute."""

    def __init__(self, location: str):
        """`location` is a folder or a URL (`file://`, `s3://`, `gs://`, `az://`). Raises UsageError, StoreError."""
        if "://" not in location:
            location = Path(location).expanduser().resolve().as_uri()
        self.url = location.rstrip("/")
        self._folder: Path | None = None
        try:
            if self.url.startswith("file://"):
                self._folder = Path(url2pathname(self.url.removeprefix("file://")))
                self._folder.mkdir(parents=True, exist_ok=True)
                self._store = LocalStore(self._folder)
            else:
                self._store = from_url(self.url, retry_config=RETRIES)
        except OSError as error:
            raise StoreError(f"checkpoint.store {self.url} cannot be used: {error.strerror or error}") from error
        except BaseError as error:
            raise UsageError(
                f"checkpoint.store = {location!r} is not a folder or a known URL: {_line(error)}"
            ) from error

    def check_writable(self) -> None:
        """Raises StoreError when the folder cannot be written. A bucket is not asked: only an object would tell."""
        if self._folder is not None:
            try:
                TemporaryFile(dir=self._folder).close()
            except OSError as error:
                raise StoreError(f"checkpoint.store {self.url} cannot be written: {error.strerror}") from error

    def put(self, key: str, data: bytes) -> Object:
        """Writes an object that must not exist yet, durably. Raises StoreError."""
        try:
            obstore.put(self._store, key, data, mode="create")
            if self._folder is not None:
                _flush(self._folder / key, self._folder)
        except AlreadyExistsError as error:
            raise StoreError(f"object {self.url}/{key} exists already; objects are written once") from error
        except FAILURES as error:
            raise StoreError(f"object {self.url}/{key} cannot be written: {_line(error)}") from error
        return Object(f"{self.url}/{key}", len(data), digest(data))

    def get(self, key: str) -> bytes | None:
        """An object's bytes, None when there is none. Raises StoreError."""
        try:
            return bytes(obstore.get(self._store, key).bytes())
        except FileNotFoundError:
            return None
        except FAILURES as error:
            raise StoreError(f"object {self.url}/{key} cannot be read: {_line(error)}") from error

    def fetch(self, reference: Object) -> bytes:
        """The bytes a manifest names. Raises StateError when they are missing or others, StoreError."""
        data = self.get(self.key(reference))
        if data is None:
            raise StateError(
                f"object {reference.url}, which a manifest names, is missing; bring it back from a backup. "
                "Nothing was changed"
            )
        if len(data) != reference.size or digest(data) != reference.digest:
            raise StateError(
                f"object {reference.url} is not the one a manifest names ({len(data)} bytes with {digest(data)}, not "
                f"{reference.size} with {reference.digest}); bring it back from a backup. Nothing was changed"
            )
        return data

    def fetch_all(self, references: Iterable[Object], known: Mapping[str, bytes]) -> dict[str, bytes]:
        """The bytes of objects by digest; those known already are not read again. Raises as `fetch` does."""
        return {r.digest: known[r.digest] if r.digest in known else self.fetch(r) for r in references}

    def key(self, reference: Object) -> str:
        """An object's key. Raises StateError when it lies in another store."""
        if not reference.url.startswith(self.url + "/"):
            raise StateError(
                f"the newest manifest names {reference.url}, which is not in checkpoint.store {self.url}; "
                "set checkpoint.store to where the run's objects are"
            )
        return reference.url.removeprefix(self.url + "/")

    def times(self, prefix: str) -> dict[str, datetime]:
        """Keys under a folder, each with the time of its writing by the store's clock; also what a killed process left
        half written. Raises StoreError."""
        try:
            listed = {o["path"]: o["last_modified"] for chunk in obstore.list(self._store, prefix) for o in chunk}
            return listed if self._folder is None else listed | _staged(self._folder, prefix)
        except FAILURES as error:
            raise StoreError(f"objects under {self.url}/{prefix} cannot be listed: {_line(error)}") from error

    def delete(self, keys: list[str]) -> None:
        """Deletes objects; one that is gone already is no error. Raises StoreError."""
        for key in keys:
            try:
                if self._folder is None:
                    obstore.delete(self._store, key)
                else:
                    _delete(self._folder / key, self._folder)
            except FileNotFoundError:
                continue
            except FAILURES as error:
                raise StoreError(f"object {self.url}/{key} cannot be deleted: {_line(error)}") from error


def _flush(path: Path, root: Path) -> None:
    # The bytes, then every folder entry on the way to them: a manifest must not outlive a power cut that its state did.
    for place in (path, *(parent for parent in path.parents if parent == root or root in parent.parents)):
        descriptor = os.open(place, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _staged(root: Path, prefix: str) -> dict[str, datetime]:
    """Keys, with their times, of files that became no object."""
    times = {}
    for path in (root / prefix).rglob("*#*"):
        with suppress(FileNotFoundError):  # it has become one meanwhile
            if STAGED.search(path.name):
                times[path.relative_to(root).as_posix()] = datetime.fromtimestamp(path.stat().st_mtime, UTC)
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
