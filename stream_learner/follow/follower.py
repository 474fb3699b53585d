"""Follow a run: fetch and verify each new release, and put it in use."""

import math
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Self

import structlog

from stream_learner.config import KafkaSettings
from stream_learner.contract.manifest import Manifest
from stream_learner.contract.pins import Chosen
from stream_learner.contract.topics import Names
from stream_learner.errors import KafkaUnavailableError, NoReleaseError, StateError, StoreError, StreamLearnerError
from stream_learner.follow.acknowledging import Acknowledger
from stream_learner.follow.reading import ReleaseReader, reader_settings
from stream_learner.follow.releases import Release, check_runtime
from stream_learner.streams.manifests import accepted
from stream_learner.streams.pins import PinsTail
from stream_learner.streams.tail import Tail

log = structlog.get_logger()

POLL_S = 0.25
# Wait for the pins topic, while a release waits for its end.
PINS_S = 0.05
ANSWERED_S = 5.0
# Ctrl-C does not end a wait that begins just then, so no wait is longer.
INTERRUPTED_S = 0.5
RETRY_S = (0.5, 1, 2, 4, 8, 15)


@dataclass(frozen=True)
class Following:
    """State of a follower."""

    release: Release | None
    """The release in use."""
    age_s: float | None
    """Seconds since the release in use was made."""
    silence_s: float
    """Seconds since the brokers last answered. While the brokers are silent, the run may have a newer release."""
    refused: str | None
    """Why a newer release is not in use, or None if no newer release is known."""
    pinned: bool
    """Whether the release in use is pinned (`stream-learner release pin`). If so, newer releases are not used."""


class Use(NamedTuple):
    """The release that a follower uses, and the releases that it must not use."""

    release: Release | None
    withdrawn: frozenset[Chosen]


class Follower:
    """Keeps the newest release of a run in use. A background thread reads the topics; all methods are thread-safe.

    If a release is pinned (`stream-learner release pin`), the follower uses it instead. It never uses a withdrawn one.

    The follower puts a release in use after it has verified the objects, and the network computes the logits of the
    release's canary. If a release fails this check, the follower logs a warning, keeps the previous release in use, and
    waits for the next release. Without a release in use, it also tries again every 15 s.
    """

    def __init__(
        self,
        run_id: str,
        kafka: KafkaSettings | str = "127.0.0.1:9092",
        *,
        prefix: str | None = None,
        verify_key_files: Sequence[str | Path] = (),
        store: str | None = None,
        own: str | None = None,
        compute: bool = True,
        keep: int = 2,
        acknowledge_as: str | None = None,
    ):
        """Connect and begin to follow.

        The arguments up to `own` mean the same as in `read_release`. If `compute` is False, the network is never built,
        and a release is put in use once its objects are verified. The property `kept` holds the last `keep` releases.
        With `acknowledge_as`, the follower writes under this name to the acks topic which release it uses.

        Raises TopicsError, KafkaUnavailableError, UsageError.
        """
        settings = reader_settings(run_id, kafka, prefix, verify_key_files)
        if compute:
            check_runtime()
        self._run_id, self._verifier = settings.run.id, settings.security.verifier
        self._compute = compute
        self._changed = threading.Condition()
        self._kept: deque[Release] = deque(maxlen=keep)
        self._refused: str | None = None
        self._withdrawn: frozenset[Chosen] = frozenset()
        self._closed = threading.Event()
        # Only the background thread uses these attributes.
        self._begun = 0
        self._order = (0, 0)  # epoch and sequence of the newest manifest
        self._newest: Manifest | None = None
        self._is_pending = False  # whether a manifest or a pin arrived that was not obeyed yet
        self._decided: Chosen | None = None  # the last release that was used or refused
        self._retry_at = math.inf  # when a refused release is read again, by time.monotonic()
        with ExitStack() as opened:
            self._reader = ReleaseReader(settings, store, own)
            opened.callback(self._reader.close)
            self._tail = Tail(settings, Names.under(settings.prefix).checkpoints)
            opened.callback(self._tail.close)
            self._pins = PinsTail(settings)
            opened.callback(self._pins.close)
            self._acknowledger = Acknowledger(settings, acknowledge_as) if acknowledge_as is not None else None
            opened.pop_all()
        self._thread = threading.Thread(target=self._follow, name=f"follower of {run_id}", daemon=True)
        self._thread.start()

    def latest(self, timeout_s: float = 0.0) -> Release:
        """Return the release in use. Wait up to `timeout_s` seconds for the first release.

        Raises NoReleaseError, whose message says why, when no release is in use by then.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not self._kept and not self._closed.is_set() and (left_s := deadline - time.monotonic()) > 0:
                self._changed.wait(min(left_s, INTERRUPTED_S))
            if not self._kept:
                why = self._refused or "its worker has not released a model yet"
                raise NoReleaseError(f"no release of run {self._run_id!r} is in use: {why}")
            return self._kept[-1]

    def __iter__(self) -> Iterator[Release]:
        """Yield the release in use, and each release that is put in use later, until `close`.

        If several releases were put in use since the last item, only the newest of them is yielded.
        """
        last = None
        for use in self.uses():
            if use.release is not None and use.release is not last:
                last = use.release
                yield last

    def uses(self) -> Iterator[Use]:
        """Yield the release in use with the withdrawn releases, now and after each change of them, until `close`."""
        last = None
        while True:
            with self._changed:
                while not self._closed.is_set() and last == self.use:
                    self._changed.wait(INTERRUPTED_S)
                if self._closed.is_set():
                    return
                last = self.use
            yield last

    @property
    def use(self) -> Use:
        """The release in use now, and the withdrawn releases."""
        with self._changed:
            return Use(self._kept[-1] if self._kept else None, self._withdrawn)

    @property
    def kept(self) -> list[Release]:
        """The last releases that were put in use, oldest first. The last item is the release in use."""
        with self._changed:
            return list(self._kept)

    @property
    def following(self) -> Following:
        """The follower's state now."""
        with self._changed:
            release = self._kept[-1] if self._kept else None
            refused = self._refused
        pinned = release is not None and _named(release) == self._pins.pins.pinned
        age_s = None
        if release:
            made = datetime.fromisoformat(release.described.created_at)
            age_s = (datetime.now(UTC) - made).total_seconds()
        return Following(release, age_s, self._tail.silence_s, refused, pinned)

    def close(self) -> None:
        """Stop following, and end all iterations. The releases can still be used."""
        with self._changed:
            self._closed.set()
            self._changed.notify_all()
        self._thread.join()
        if self._acknowledger:
            self._acknowledger.close()
        self._pins.close()
        self._tail.close()
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _follow(self) -> None:
        failures = 0
        while not self._closed.is_set():
            try:
                self._look()
                failures = 0
            except (KafkaUnavailableError, StoreError) as error:
                pause_s = RETRY_S[min(failures, len(RETRY_S) - 1)]
                failures += 1
                log.warning("a release cannot be read yet", error=str(error), retry_in_s=pause_s)
                self._set(refused=str(error))
                self._closed.wait(pause_s)
            except Exception as error:
                log.exception("following failed in an unexpected way; trying again")
                self._set(refused=str(error))
                self._closed.wait(RETRY_S[-1])

    def _look(self) -> None:
        """Read the newly committed records, and put the newest release in use, or the pinned one."""
        if self._tail.silence_s < ANSWERED_S:  # a look for a missing topic would wait for the brokers
            self._pins.look()
        if self._pins.poll(0.0 if self._pins.at_end else PINS_S):
            self._is_pending = True
        for record in self._tail.poll(0.0 if self._is_pending else POLL_S):
            if self._tail.begun != self._begun:
                self._begun, self._order, self._decided = self._tail.begun, (0, 0), None
            try:
                manifest = accepted(record, self._run_id, self._verifier).manifest
            except (ValueError, StateError) as error:
                log.warning("a record is not a manifest of the run", offset=record.offset, why=str(error))
                continue
            if manifest.order > self._order:
                self._order, self._newest, self._is_pending = manifest.order, manifest, True
        if time.monotonic() >= self._retry_at and not self._kept:
            self._retry_at = math.inf
            self._decided, self._is_pending = None, True  # the store may have been empty, such as a mount that is late
        if self._is_pending and self._tail.at_end and self._pins.at_end:
            if self._newest and self._newest.release:  # without one, the run was started over and has not released yet
                self._use(self._newest)
            self._is_pending = False

    def _use(self, newest: Manifest) -> None:
        """Put the chosen release in use, unless it is in use or was refused already. Withdrawn releases leave use."""
        chosen = self._pins.pins.choose(newest)
        if chosen is None:
            self._set(refused="all releases that are kept were withdrawn")
        elif held := next((release for release in self._kept if _named(release) == chosen), None):
            self._set(held)
        elif chosen != self._decided or (self._kept and not self._remaining()):
            self._fetch(newest, chosen)
        else:
            self._set(refused=self._refused)
        self._decided = chosen

    def _fetch(self, newest: Manifest, chosen: Chosen) -> None:
        """Put a release in use. If it is refused and no release is in use, fall back to the newest one that is not."""
        release, refused = self._read(newest, chosen)
        self._retry_at = time.monotonic() + RETRY_S[-1] if refused else math.inf
        if release is None and not self._remaining():
            others = (other for other in reversed(self._pins.pins.usable(newest)) if other != chosen)
            release = next(filter(None, (self._read(newest, other)[0] for other in others)), None)
        self._set(release, refused)

    def _read(self, newest: Manifest, chosen: Chosen) -> tuple[Release | None, str | None]:
        """Return a verified release, or None and why it is refused. Raises KafkaUnavailableError, StoreError."""
        try:
            release = self._reader.read(newest, chosen)
            if self._compute:
                release.check()
        except (KafkaUnavailableError, StoreError):
            raise
        except StreamLearnerError as error:
            log.warning("a release is refused", sequence=chosen.sequence, why=str(error))
            return None, str(error)
        return release, None

    def _set(self, release: Release | None = None, refused: str | None = None) -> None:
        """Put a release in use, or set why it is not in use. Withdrawn releases leave `kept`."""
        with self._changed:
            self._withdrawn = frozenset(self._pins.pins.withdrawn)
            kept = [old for old in self._remaining() if old is not release]
            self._kept = deque([*kept, *([release] if release else [])], maxlen=self._kept.maxlen)
            self._refused = refused
            self._changed.notify_all()
            in_use = self._kept[-1].order if self._kept else None
        if self._acknowledger:
            self._acknowledger.use(in_use)

    def _remaining(self) -> list[Release]:
        """Return the kept releases that nobody has withdrawn."""
        return [release for release in self._kept if _named(release) not in self._pins.pins.withdrawn]


def _named(release: Release) -> Chosen:
    return Chosen(*release.order, release.described.object.digest)
