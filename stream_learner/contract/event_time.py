"""Checks for odd timestamps, which are not valid times or lie in the future."""

import math

# Smaller values are not times in milliseconds: -1, 0, and times in seconds. Larger values are after the year 9999.
LEAST_MS = 100_000_000_000
GREATEST_MS = 253_402_300_799_999
FUTURE_MS = 3_600_000

FUTURE, UNKNOWN = "future", "unknown"
KINDS: tuple[str, ...] = (FUTURE, UNKNOWN)


def is_known(timestamp_ms: int) -> bool:
    """Return whether a timestamp is a time, in milliseconds since 1970, UTC."""
    return LEAST_MS <= timestamp_ms <= GREATEST_MS


def odd_kind(timestamp_ms: int, now_s: float) -> str | None:
    """Return `unknown`, `future` (more than an hour after `now_s`), or None for a usual timestamp."""
    if not is_known(timestamp_ms):
        return UNKNOWN
    return FUTURE if timestamp_ms > now_s * 1000 + FUTURE_MS else None


def age_s(timestamp_ms: int | None, now_s: float) -> float:
    """Return the age of a record in seconds, NaN if its timestamp is missing or odd."""
    if timestamp_ms is None or odd_kind(timestamp_ms, now_s):
        return math.nan
    return max(0.0, now_s - timestamp_ms / 1000)
