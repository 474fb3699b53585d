"""Finished runs. Each is a JSON file, named after its options."""

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = dict[str, Any]


def key(name: str, asked: Run) -> str:
    """Return a file name, without suffix, for the options of a run: a name for people, and a digest of all options."""
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
    return file_name(f"{name}-{digest}")


def file_name(name: str) -> str:
    """Return a name without characters that need quotes in a shell or in a link."""
    return re.sub("[^a-zA-Z0-9_.-]+", "_", name)


def once(folder: Path, name: str, asked: Run, run: Callable[[], Run]) -> Run:
    """Return the result of `run` with its options. If it was run before, read it from its file and say so."""
    file = folder / f"{key(name, asked)}.json"
    if file.exists():
        print(f"this run is finished; delete the file to run it again: {file}", file=sys.stderr)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(f".{os.getpid()}")  # an interrupted run leaves no half-written file
        unfinished.write_text(json.dumps(asked | run(), indent=1) + "\n")
        unfinished.rename(file)
    return json.loads(file.read_text())


def read_all(folder: Path) -> list[Run]:
    """Read all finished runs in a folder, in the order of their names."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
