"""Pin and withdraw releases. Followers obey, and training continues."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from stream_learner.config import AnySettings
from stream_learner.contract import signatures
from stream_learner.contract.documents import time_text
from stream_learner.contract.manifest import Manifest, encode
from stream_learner.contract.pins import Chosen, Pin
from stream_learner.contract.topics import Names
from stream_learner.errors import KafkaUnavailableError, NoReleaseError, UsageError
from stream_learner.follow.reading import newest_manifest
from stream_learner.program import PROGRAM
from stream_learner.streams.pins import Pins, listed, read_pins
from stream_learner.streams.writing import write


@dataclass(frozen=True)
class Choice:
    """Result of a command: whether it changed anything, and the release that followers use now."""

    changed: bool
    used: Chosen | None


def choose(settings: AnySettings, action: Literal["pin", "unpin", "withdraw"], sequence: int | None = None) -> Choice:
    """Pin or withdraw the release with a sequence, or unpin the pinned one. Write nothing if this is already so.

    Raises UsageError when the release is not kept, NoReleaseError, StateError, TopicsError, KafkaUnavailableError, also
    when the record was written but an open transaction hides it from followers for longer than `recovery.timeout_s`.
    """
    signer = settings.security.signer
    if settings.security.verifier and not signer:
        raise UsageError(
            "security.verify_key_files is set, but security.signing_key_file is not, so followers would ignore this "
            "record; set security.signing_key_file"
        )
    newest = newest_manifest(settings)
    if newest is None or newest.release is None:
        raise NoReleaseError(f"run {settings.run.id!r} has not released a model yet")
    pins = read_pins(settings)
    release = None if sequence is None else _find(newest, pins, sequence)
    if action == "pin" and release in pins.withdrawn:
        raise UsageError(f"release {sequence} was withdrawn, so followers never use it; choose {_usable(newest, pins)}")
    if release in pins.withdrawn if action == "withdraw" else release == pins.pinned:
        return Choice(False, pins.choose(newest))
    pin = Pin(
        program=PROGRAM,
        run_id=settings.run.id,
        action=action,
        release=release,
        created_at=_later(pins.newest),
    )
    value = encode(pin)
    headers = [(signatures.HEADER, signer.sign(value))] if signer else []
    write(settings, Names.under(settings.prefix).pins, pin.key, value, headers)
    try:
        pins = read_pins(settings, wait=True)  # what followers see
    except KafkaUnavailableError as error:
        raise KafkaUnavailableError(f"the record was written, but followers may not see it yet: {error}") from error
    # The worker may have dropped the release in the meantime. It keeps a pinned release once it has read the record.
    return Choice(True, pins.choose(newest_manifest(settings) or newest))


def _find(newest: Manifest, pins: Pins, sequence: int) -> Chosen:
    for release in listed(newest):
        if release.sequence == sequence:
            return release
    raise UsageError(f"release {sequence} is not kept; choose {_usable(newest, pins)}")


def _usable(newest: Manifest, pins: Pins) -> str:
    usable = [str(release.sequence) for release in pins.usable(newest)]
    return f"one of {', '.join(usable)}" if usable else "a later release: all that are kept were withdrawn"


def _later(newest: Pin | None) -> str:
    """Return the time now, or a later one than that of the newest record: readers ignore older records."""
    now = datetime.now(UTC)
    if newest:
        last = datetime.fromisoformat(newest.created_at)
        now = max(now, last + min(timedelta(milliseconds=1), datetime.max.replace(tzinfo=UTC) - last))
    return time_text(now, "microseconds")
