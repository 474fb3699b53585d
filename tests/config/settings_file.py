"""A small settings file, and what is reported about wrong settings."""

from pathlib import Path

import pytest

from stream_learner import config
from stream_learner.errors import ExitCode, UsageError

FILE = """
[run]
id = "digits"

[input]
topics = ["images"]

[kafka]
client_id = "file"
"""


def problem(path: Path | None, *overrides: str) -> str:
    with pytest.raises(UsageError) as caught:
        config.load(path, list(overrides))
    assert caught.value.code is ExitCode.USAGE
    return str(caught.value)
