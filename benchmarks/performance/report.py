"""Tables and plots of the finished rounds."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

from benchmarks.performance import charts, loops, memory
from benchmarks.performance.rounds import QUIET_CORES, RESULTS, Subject, common, finished, rates
from benchmarks.runs import Run
from stream_learner.errors import DataError

PAGE = "performance.md"
MIB = 1024 * 1024
INTRODUCTION = """# How fast it learns

Made by `python -m benchmarks.performance report` from the rounds in `benchmarks/results/performance/`.

* Each figure is the median of the rounds, with the least and the greatest in brackets. In each round, all sides of a
  table take turns, each in a process of its own. Ratios compare measurements of one round.
* Figures of different machines cannot be compared.
* *Elsewhere*: the cores that other programs kept busy, at most. Above 0.1 the figures are unreliable. The broker of
  the measurement does not count.
* *CPU* and *peak* are those of the side's main process.
* `png28`: grey images of 28 x 28 pixels, made up. `jpeg32`: RGB images of 32 x 32 pixels, made up.
"""
TITLES = {
    "limit": "The limit",
    "memory": "In memory, stage by stage",
    "kafka": "From Kafka",
    "loops": "Beside the programs that users would write",
    "replay": "The default strategy beside hand-written replay",
}
NOTES = {
    "limit": """A bare loop: one batch stays in memory, and each turn is one step with Adam. Nothing is read, decoded,
predicted or counted. `NHWC` is the memory layout channels-last, and `malloc` keeps freed memory in the process.""",
    "memory": """Each stage also has all stages above it. *Step* is the learner's own step on one batch in memory.
*Predict* is the prediction before learning, with its counts, weights and ledger. A forward pass that both
share counts for the step. Held-out records are not learned, so
their share of the time is negative. The last row is the default of the worker.""",
    "kafka": """The worker saves every 10 s, and its metrics are read. *Plain* is learning as a loop does it: Adam, no
replay, no average, no augmentation, nothing held out. *Default* is the worker's default, which replays three images
with each new one. *Limit* is the best setting of the part above.""",
    "loops": """The same records, network and batch. The loops decode with Pillow and train with Adam as PyTorch does by
default. They do nothing else: no checkpoints, no predictions before learning, no metrics. The worker does all of this,
but learns as plainly. The programs are in `benchmarks/loops/`.""",
    "replay": """The worker's default strategy (replay, average, augmentation, Muon), beside the loops with a replay
buffer. In both, each new image is learned together with three replayed ones. Nothing is held out.""",
}


def write(output: Path, folder: Path = RESULTS) -> list[Path]:
    """Write the page and a plot for each table. Return the files. Raises DataError without a finished round."""
    pages, files = [INTRODUCTION], [output / PAGE]
    for part, title in TITLES.items():
        found = finished(part, folder)
        if not found:
            continue
        pages.append(f"## {title}\n\n{NOTES[part]}\n")
        for subject, rounds in found.items():
            name = f"{subject.model}, {subject.data}, batch {subject.batch}"
            height, width, channels = subject.size
            files.append(output / f"performance-{part}-{subject.model}-{subject.data}-{subject.batch}.png")
            pages.append(f"### {title}: {name}\n\nNetwork input: {height} x {width} x {channels}. {_made_on(rounds)}\n")
            pages.append(_stages(rounds) if part == "memory" else _sides(rounds))
            if ratios := comparisons(subject, rounds):
                pages.append(_table(("ratio", "of the rounds"), ratios.items()))
            pages.append(f"![{title}: {name}]({files[-1].name})\n")
            draw = charts.stages if part == "memory" else charts.sides
            draw(f"{title}: {name}", rounds, files[-1])
    if len(pages) == 1:
        raise DataError(f"there is no finished round in {folder}; run a part first")
    (output / PAGE).write_text("\n".join(pages))
    return files


def comparisons(subject: Subject, rounds: list[Run]) -> dict[str, str]:
    """Return the ratios of a part with their spread. Both rates of a ratio are of one round."""
    sides = common(rounds)
    rivals = [name for name in loops.LOOPS if name in sides]
    pairs: dict[str, tuple[str, list[str]]] = {}
    if subject.part == "kafka":
        for over in ("limit", "in memory, plain", "worker without checkpoints, plain"):
            pairs[f"worker, plain / {over}"] = "worker, plain", [over]
        pairs["worker, default / in memory, default"] = "worker, default", ["in memory, default"]
    elif rivals:
        pairs = {f"worker / {name}": ("worker", [name]) for name in rivals}
        pairs["worker / the fastest loop of the round"] = "worker", rivals
        if "limit" in sides:
            pairs["worker / limit"] = "worker", ["limit"]
    ratios = {}
    for name, (side, others) in pairs.items():
        fastest = map(max, zip(*(rates(rounds, other) for other in others), strict=True))
        ratios[name] = spread([a / b for a, b in zip(rates(rounds, side), fastest, strict=True)], ".2f")
    return ratios


def spread(values: Sequence[float], form: str) -> str:
    """Return the median of some values, with the least and the greatest."""
    low, middle, high = (format(value, form) for value in (min(values), median(values), max(values)))
    return f"{middle} ({low}-{high})" if len(values) > 1 else middle


def micros(rounds: list[Run], side: str) -> list[float]:
    """Return the microseconds a record of a side in each round."""
    return [1e6 / rate for rate in rates(rounds, side)]


def _sides(rounds: list[Run]) -> str:
    rows = []
    for side in common(rounds):
        figures = [round_["measured"][side] for round_ in rounds]
        rows.append(
            (
                side,
                spread(rates(rounds, side), ",.0f"),
                f"{median(micros(rounds, side)):,.1f}",
                f"{median(f['cpu_s_per_1000_records'] for f in figures):.3f}",
                f"{max(f['peak_memory_bytes'] for f in figures) / MIB:,.0f}",
                f"{max(f['cores_elsewhere'] for f in figures):.2f}",
            )
        )
    return _table(("side", "records/s", "µs a record", "CPU s / 1000", "peak MiB", "elsewhere"), rows)


def _stages(rounds: list[Run]) -> str:
    rows, before = [], [0.0] * len(rounds)
    for stage in memory.STAGES:
        total = micros(rounds, stage)
        added = [now - earlier for now, earlier in zip(total, before, strict=True)]
        elsewhere = max(round_["measured"][stage]["cores_elsewhere"] for round_ in rounds)
        rows.append(
            (
                stage,
                spread(added, ",.1f"),
                spread(total, ",.1f"),
                spread(rates(rounds, stage), ",.0f"),
                f"{elsewhere:.2f}",
            )
        )
        before = total
    return _table(("stage", "adds, µs a record", "so far, µs a record", "records/s", "elsewhere"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ("---", *["---:"] * (len(head) - 1)), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _made_on(rounds: list[Run]) -> str:
    """Return the number of rounds, the machine and the commits, and whether other programs were busy."""
    described = sorted({"{processor}, {cores} cores, PyTorch {torch}".format(**r["machine"]) for r in rounds})
    commits = sorted({r["machine"]["commit"] for r in rounds})
    busy = max(m["cores_elsewhere"] for r in rounds for m in r["measured"].values())
    noise = f" **Other programs kept up to {busy:.1f} cores busy.**" if busy > QUIET_CORES else ""
    return f"Rounds: {len(rounds)}. {'; '.join(described)}; commit {', '.join(commits)}.{noise}"
