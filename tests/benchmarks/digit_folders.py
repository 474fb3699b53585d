"""Digits as class folders, and the benchmarks' commands on them."""

import json
from typing import Any

from typer.testing import CliRunner

from benchmarks.learning import app

EACH = 24  # images of a class; of these the last four are the test part


def run(*arguments: object) -> list[dict[str, Any]]:
    """The lines of JSON that a command prints."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.output.splitlines() if line.startswith("{")]
