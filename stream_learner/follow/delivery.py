"""Writes the releases of a run to a directory or registry as they are published, and informs servers."""

import os
import threading
from collections.abc import Callable, Set
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Protocol, TypeVar

import structlog

from stream_learner.config import FollowSettings
from stream_learner.contract.pins import Chosen
from stream_learner.errors import StateError, UsageError
from stream_learner.follow.acknowledging import CLOSE_S
from stream_learner.follow.directories import open_directory
from stream_learner.follow.follower import RETRY_S, Follower, Use
from stream_learner.follow.loading import Loads
from stream_learner.follow.mlflow import MLflow, RegistryUnavailableError
from stream_learner.follow.notices import Notices
from stream_learner.follow.reading import read_release
from stream_learner.follow.releases import Release, check_runtime
from stream_learner.follow.signing import Signer
from stream_learner.streams.pins import read_pins

log = structlog.get_logger()

MLFLOW = "mlflow:"

T = TypeVar("T")


class Target(Protocol):
    """Where releases are written: a directory or a registry."""

    def put(self, release: Release) -> object:
        """Write a release if it is not there, and make it the current one. Return its path or URI."""
        ...

    def withdraw(self, releases: Set[Chosen]) -> None:
        """Mark the withdrawn releases of a run, if they are there."""
        ...

    def close(self) -> None: ...


def open_target(
    to: str, settings: FollowSettings, layout: str | None = None, keep: int | None = None, sign_key: Path | None = None
) -> Target:
    """Open a directory, or the registry of `mlflow:URL`. Raises UsageError, StoreError."""
    if to.startswith(MLFLOW):
        if layout or keep or sign_key:
            raise UsageError("--layout, --keep and --sign-key are for directories; leave them out for MLflow")
        prefix = settings.topics.prefix or settings.run.id
        return MLflow(to.removeprefix(MLFLOW), settings.run.id, prefix, os.environ)
    signer = Signer(sign_key) if sign_key else None
    return open_directory(Path(to), layout or "plain", settings.run.id, keep, signer)


def deliver_newest(settings: FollowSettings, target: Target, loads: Loads | None, notices: Notices | None) -> None:
    """Write the newest release of a run. Raises the errors of `read_release`, `Target.put` and `Loads.once`."""
    check_runtime()
    withdrawn = read_pins(settings).withdrawn
    try:
        release = read_release(**follower_arguments(settings))
        release.check()
        path = _written(release, target)
    finally:
        target.withdraw(withdrawn)
    if loads:
        loads.once()
    if notices:
        _notify(notices, release, path)


def deliver_all(
    settings: FollowSettings,
    target: Target,
    loads: Loads | None,
    notices: Notices | None,
    stop: threading.Event,
) -> None:
    """Write the newest release of a run, and each later one, until `stop` is set. Mark those that are withdrawn.

    Skip releases that do not verify or lack what the layout needs. Wait for a registry that does not answer. Raises the
    errors of `Follower`, and StoreError when the directory cannot be written.
    """
    follower = Follower(**follower_arguments(settings), keep=1, acknowledge_as=settings.follow.name)

    def close() -> None:
        stop.wait()
        follower.close()

    ending = threading.Thread(target=close, name="end of following", daemon=True)
    ending.start()
    last = None
    try:
        for use in follower.uses():
            if use.release is not None and use.release is not last:
                last = use.release
                _deliver(last, follower, target, loads, notices, stop)
            _withdraw(use, follower, target, stop)
    finally:
        stop.set()
        ending.join(2 * CLOSE_S)


def follower_arguments(settings: FollowSettings) -> dict[str, Any]:
    """Return the arguments that `Follower` and `read_release` have in common."""
    return {
        "run_id": settings.run.id,
        "kafka": settings.kafka,
        "prefix": settings.topics.prefix,
        "verify_key_files": settings.security.verify_key_files,
        "store": settings.store,
    }


def _deliver(
    release: Release,
    follower: Follower,
    target: Target,
    loads: Loads | None,
    notices: Notices | None,
    stop: threading.Event,
) -> None:
    """Write a release, and inform servers, unless another release is in use in the meantime."""

    def superseded() -> bool:
        return follower.use.release is not release

    try:
        path = _until_answered(partial(_written, release, target), superseded, stop)
    except StateError as error:
        log.warning("a release is not written; the last one stays current", why=str(error))
        return
    if path is None or (loads and not loads.until_loaded(superseded)):
        return
    if notices:
        _notify(notices, release, path)


def _withdraw(use: Use, follower: Follower, target: Target, stop: threading.Event) -> None:
    """Mark the withdrawn releases, unless the follower's use changes in the meantime."""
    try:
        _until_answered(partial(target.withdraw, use.withdrawn), lambda: follower.use != use, stop)
    except StateError as error:
        log.warning("withdrawn releases are not marked", why=str(error))


def _until_answered(write: Callable[[], T], superseded: Callable[[], bool], stop: threading.Event) -> T | None:
    """Write to a target. If a registry does not answer, try again until `superseded` or `stop`; then return None."""
    for pause_s in chain(RETRY_S, repeat(RETRY_S[-1])):
        try:
            return write()
        except RegistryUnavailableError as error:
            log.warning("a release cannot be written yet", error=str(error), retry_in_s=pause_s)
            if stop.wait(pause_s) or superseded():
                return None


def _written(release: Release, target: Target) -> str:
    path = str(target.put(release))
    log.info("release written", sequence=release.described.sequence, epoch=release.manifest.epoch, path=path)
    return path


def _notify(notices: Notices, release: Release, path: str) -> None:
    notices.post(
        {
            "run": release.manifest.run_id,
            "epoch": release.manifest.epoch,
            "sequence": release.described.sequence,
            "path": path,
            "digest": release.described.object.digest,
        }
    )
