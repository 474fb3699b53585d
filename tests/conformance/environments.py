"""Settings of runs, and environments of their own, that several checks need."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
EVERY: dict[str, Any] = {"release.every_records": 200, "release.min_held_out": 1000}
"""Each candidate is released."""
GRAPHS: dict[str, Any] = {"release.formats": ["safetensors", "onnx"], "release.format_wait_s": 300.0}
"""Each release has a graph."""
CLEAN = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
"""The variables of a program that finds only what its environment holds."""


def install(folder: Path, lock: str) -> Path:
    """Make an environment that holds the packages of a lock file and this one, nothing else. Return its programs."""
    programs = folder / "bin"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--require-hashes", "-r", ROOT / "locks" / lock], check=True)
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", ROOT], check=True)
    return programs
