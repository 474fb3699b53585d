"""Writes the releases of a run to a directory as they are published, and informs servers."""

import threading
from typing import Any

import structlog

from stream_learner.config import FollowSettings
from stream_learner.errors import StateError
from stream_learner.follow.directories import Directory
from stream_learner.follow.follower import Follower
from stream_learner.follow.loading import Loads
from stream_learner.follow.notices import Notices
from stream_learner.follow.reading import read_release
from stream_learner.follow.releases import Release, check_runtime

log = structlog.get_logger()


def deliver_newest(
    settings: FollowSettings, directory: Directory, loads: Loads | None, notices: Notices | None
) -> None:
    """Write the newest release of a run. Raises the errors of `read_release`, `Directory.put` and `Loads.once`."""
    check_runtime()
    release = read_release(**follower_arguments(settings))
    release.check()
    path = _written(release, directory)
    if loads:
        loads.once()
    if notices:
        _notify(notices, release, path)


def deliver_all(
    settings: FollowSettings,
    directory: Directory,
    loads: Loads | None,
    notices: Notices | None,
    stop: threading.Event,
) -> None:
    """Write the newest release of a run, and each later one, until `stop` is set.

    Skip releases that do not verify or lack what the layout needs. Raises the errors of `Follower`, and StoreError when
    the directory cannot be written.
    """
    follower = Follower(**follower_arguments(settings), keep=1, acknowledge_as=settings.follow.name)

    def close() -> None:
        stop.wait()
        follower.close()

    threading.Thread(target=close, name="end of following", daemon=True).start()
    try:
        for release in follower:
            try:
                path = _written(release, directory)
            except StateError as error:
                log.warning("a release is not written; the last one stays current", why=str(error))
                continue
            if loads and not loads.until_loaded(lambda release=release: follower.following.release is not release):
                continue
            if notices:
                _notify(notices, release, path)
    finally:
        stop.set()


def follower_arguments(settings: FollowSettings) -> dict[str, Any]:
    """Return the arguments that `Follower` and `read_release` have in common."""
    return {
        "run_id": settings.run.id,
        "kafka": settings.kafka,
        "prefix": settings.topics.prefix,
        "verify_key_files": settings.security.verify_key_files,
        "store": settings.store,
    }


def _written(release: Release, directory: Directory) -> str:
    path = str(directory.put(release))
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
