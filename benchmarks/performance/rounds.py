"""Rounds of a part: in each round every side has one turn. A finished round is a JSON file and is not run again."""

import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import NamedTuple

from rich.console import Console

from benchmarks import runs
from benchmarks.observation import Measurement
from benchmarks.runs import Run

QUIET_CORES = 0.1
TOPIC = "images"
RESULTS = Path(__file__).parents[1] / "results" / "performance"

Sides = Mapping[str, Callable[[], Measurement | Run]]
"""The sides of a comparison by name. Each call is one turn. Its figures always have `cores_elsewhere`."""

console = Console(highlight=False, width=120)


class Subject(NamedTuple):
    """Options that all sides of a comparison share."""

    part: str
    model: str
    data: str
    batch: int
    size: tuple[int, int, int]
    """Height, width (px) and channels of the images that the model gets."""

    def overrides(self, *more: str) -> list[str]:
        """Return settings for this model and these images, of which `more` may repeat some."""
        height, width, channels = self.size
        return [
            "run.id=performance",
            f"input.topics=['{TOPIC}']",
            f"model.name={self.model}",
            f"model.height={height}",
            f"model.width={width}",
            f"model.channels={channels}",
            f"batch.size={self.batch}",
            *more,
        ]


def run(subject: Subject, sides: Callable[[], Sides], number: int, folder: Path = RESULTS) -> None:
    """Run a round if it is not finished. Only then is `sides` called."""
    name = f"{subject.part}-{subject.model}-{subject.data}-batch{subject.batch}-round{number}"
    asked = subject._asdict() | {"round": number}
    runs.once(folder, name, asked, lambda: _round(name, sides(), number))


def _round(name: str, sides: Sides, number: int) -> Run:
    """Give each side a turn, in alternating order: a machine that becomes slower or faster favours no side."""
    measured = {}
    for done, side in enumerate(list(sides)[:: -1 if number % 2 else 1], 1):
        found = sides[side]()
        figures = found if isinstance(found, dict) else found._asdict()
        measured[side] = figures
        first, figure = next(iter(figures.items()))
        console.print(f"{name}: {done} of {len(sides)}: {side}: {figure:,.1f} {first}")
        if figures["cores_elsewhere"] > QUIET_CORES:
            console.print(
                f"other programs kept {figures['cores_elsewhere']:.1f} cores busy: unreliable", style="yellow"
            )
    return {"measured": {side: measured[side] for side in sides}, "machine": machine()}


def machine() -> Run:
    """Return what the figures depend on besides the program: processor, cores, libraries, and the commit."""
    models = {line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")}
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return {
        "processor": ", ".join(sorted(models)) or platform.machine(),
        "cores": os.cpu_count(),
        "torch": version("torch"),
        "commit": commit.stdout.strip(),
    }


def _cpuinfo() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if file.exists() else []


def finished(part: str, folder: Path = RESULTS) -> dict[Subject, list[Run]]:
    """Return the finished rounds of a part by subject."""
    found: dict[Subject, list[Run]] = {}
    for round_ in runs.read_all(folder):
        if round_["part"] == part:
            height, width, channels = round_["size"]
            subject = Subject(part, round_["model"], round_["data"], round_["batch"], (height, width, channels))
            found.setdefault(subject, []).append(round_)
    return found


def common(rounds: list[Run]) -> list[str]:
    """Return the sides that were measured in every round."""
    return [side for side in rounds[0]["measured"] if all(side in round_["measured"] for round_ in rounds)]


def rates(rounds: list[Run], side: str) -> list[float]:
    """Return the records/s of a side in each round."""
    return figures(rounds, side, "records_per_s")


def figures(rounds: list[Run], side: str, name: str) -> list[float]:
    """Return a figure of a side in each round."""
    return [round_["measured"][side][name] for round_ in rounds]


def cores_elsewhere(rounds: list[Run]) -> float:
    """Return the cores that other programs kept busy beside a side, at most."""
    return max(measured["cores_elsewhere"] for round_ in rounds for measured in round_["measured"].values())


def fastest(rounds: list[Run]) -> str:
    """Return the side with the greatest median rate."""
    return max(common(rounds), key=lambda side: median(rates(rounds, side)))
