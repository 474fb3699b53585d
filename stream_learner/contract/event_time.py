"""Timestamps that are no time at all, and those of the future."""

import math

# Below is no time in milliseconds of a record: -1, 0, and times in seconds. Above is no year of four digits.
LEAST_MS = 100_000_000_000
GREATEST_MS = 253_402_300_799_999
FUTURE_MS = 3_600_000

FUTURE, UNKNOWN = "future", "unknown"
KINDS: tuple[str, ...] = (FUTURE, UNKNOWN)


def is_known(timestamp_ms: int) -> bool:
    """Return whether it is a time, in milliseconds since 1970, UTC."""
    return LEAST_MS <= timestamp_ms <= GREATEST_MS


def odd_kind(timestamp_ms: int, now_s: float) -> str | None:
    """Return `unknown`, `future` (more than an hour after `now_s`), or None for a timestamp as it should be."""
    if not is_known(timestamp_ms):
        return UNKNOWN
    return FUTURE if timestamp_ms > now_s * 1000 + FUTURE_MS else None


def age_s(timestamp_ms: int | None, now_s: float) -> float:
    """Return how old a record is, in seconds; NaN for no timestamp, or an odd one."""
    if timestamp_ms is None or odd_kind(timestamp_ms, now_s):
        return math.nan
    return max(0.0, now_s - timestamp_ms / 1000)
