"""Display the demo while it runs, and a summary at its end."""

import math
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from stream_learner.contract.vocabulary import Split
from stream_learner.local.asking import Asked
from stream_learner.local.counts import Counts, rejected
from stream_learner.local.scrape import Figures
from stream_learner.text import printable

SPARKS = " ▁▂▃▄▅▆▇█"
SPARKLINE = 36
# Smallest width of a terminal, in columns, at which a row shows three figures.
WIDE = 76
RATE_WINDOW_S = 10.0
LINE_EVERY_S = 10.0
STOPPED = "has saved and stopped"


@dataclass
class View:
    """The figures of one demo, drawn again after every scrape. Times are in monotonic seconds.

    `held_out` says where the samples of each held-out set come from.
    """

    title: str
    to_feed: int
    held_out: dict[Split, str]
    fed: int = 0
    pid: int = 0
    restarts: int = 0
    interrupted: bool = False
    state: str = "starting"
    figures: Figures = field(default_factory=lambda: Figures({}))
    counts: Counts = field(default_factory=Counts)
    read: int = 0
    _reads: deque[tuple[float, int]] = field(default_factory=deque)
    _prequential: list[float] = field(default_factory=list)

    def worker(self, pid: int, restarts: int, phase: str | None, now: float) -> None:
        """Set the worker's process and phase. `phase` is None if the metrics page does not answer."""
        silent = "starting" if pid != self.pid or self.state == "starting" else "does not answer"
        self.pid, self.restarts, self.state = pid, restarts, phase or silent
        if not self.read:
            self._reads.clear()  # the time of the start would distort the rate
        self._reads.append((now, self.read))
        while now - self._reads[0][0] > RATE_WINDOW_S:
            self._reads.popleft()

    def update(self, figures: Figures, counts: Counts, read: int) -> None:
        """Set the figures of a worker that has recovered, the run's counts, and the number of records read.

        Figures that a new process does not know yet keep their last value.
        """
        known = {sample: value for sample, value in figures.samples.items() if not math.isnan(value)}
        self.figures, self.counts = Figures({**self.figures.samples, **known}), counts
        self.read = max(self.read, read)
        prequential = figures.get("accuracy", kind="recent")
        if not math.isnan(prequential):
            places = min(self.read * SPARKLINE // self.to_feed + 1, SPARKLINE)
            self._prequential += [prequential] * (places - len(self._prequential))

    @property
    def rate(self) -> float:
        """Records read per second, over the last RATE_WINDOW_S seconds."""
        (before, first), (now, last) = (self._reads[0], self._reads[-1]) if self._reads else ((0.0, 0), (0.0, 0))
        return (last - first) / (now - before) if now > before else 0.0

    @property
    def time_left(self) -> str:
        """Time until all records are read at the current rate, as minutes and seconds."""
        if not self.rate:
            return "-"
        minutes, seconds = divmod(math.ceil((self.to_feed - self.read) / self.rate), 60)
        return f"{minutes}:{seconds:02}"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        worker = f"worker {self.state}" + (f", started again {self.restarts} x" if self.restarts else "")
        numbers = self._numbers(columns=3 if options.max_width >= WIDE else 2)
        accuracies = self._accuracies(spark=not options.ascii_only)
        body = Group(self._bars(), Text(), numbers, Text(), accuracies, Text(), Text(worker, "bold"))
        yield Panel(body, title=f"[bold]{self.title}", border_style="blue", padding=(1, 2))
        if self.interrupted:
            yield Text("stopping after a last save; Ctrl-C again stops at once", "dim")
        elif self.state != STOPPED:
            yield Text(f"kill -9 {self.pid}: it starts again, and nothing is lost. Ctrl-C stops all", "dim")
        # The cursor stays in the last line, where the next drawing overwrites the terminal's `^C`.
        yield Text()

    def _bars(self) -> Table:
        bars = Table.grid(padding=(0, 2), expand=True)
        bars.add_column(width=5)
        bars.add_column(ratio=1)
        bars.add_column(justify="right", width=17)
        bars.add_row("fed", ProgressBar(self.to_feed, self.fed), f"{self.fed:,} / {self.to_feed:,}")
        bars.add_row("read", ProgressBar(self.to_feed, self.read), f"{self.read:,} / {self.to_feed:,}")
        return bars

    def _numbers(self, columns: int) -> Table:
        figures, counts, reasons = self.figures, self.counts, rejected(self.counts)
        listed = f" ({', '.join(sorted(reasons))})" if reasons else ""
        lag = figures.total("lag_records") if figures.samples else math.nan
        numbers = [
            ("records/s", f"{self.rate:,.0f}"),
            ("time left", self.time_left),
            ("steps", f"{counts['steps']:,}"),
            ("loss", decimal(figures.get("loss"))),
            ("learned", f"{counts['learned']:,}"),
            ("held out", f"{counts[Split.VALIDATION] + counts[Split.TEST]:,}"),
            ("in memory", count(figures.total("memory_items"))),
            ("kappa", decimal(figures.get("kappa"))),
            ("lag, records", count(lag)),
            ("checkpoint", count(figures.get("checkpoint_sequence"))),
            ("releases", f"{counts['releases']:,} (refused {counts['refused']:,})"),
            ("rejected", f"{reasons.total():,}{listed}"),
        ]
        table = Table.grid(padding=(0, 2))
        for last in [False] * (columns - 1) + [True]:
            table.add_column(style="dim", no_wrap=True)
            table.add_column(style="bold", min_width=7, no_wrap=not last)
        rows = len(numbers) // columns
        for row in range(rows):
            table.add_row(*(text for figure in numbers[row::rows] for text in figure))
        return table

    def _accuracies(self, spark: bool) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", width=11)
        table.add_column(justify="right", width=6)
        table.add_column(width=9)
        table.add_column(no_wrap=True)
        bars = "".join(SPARKS[round(share * (len(SPARKS) - 1))] for share in self._prequential) if spark else ""
        for name, kind, note in (
            ("prequential", "recent", Text(bars, "green")),
            *((split, split, Text(self.held_out[split], "dim")) for split in (Split.VALIDATION, Split.TEST)),
        ):
            samples = count(self.figures.get("accuracy_samples", kind=kind))
            table.add_row(name, percent(self.figures.get("accuracy", kind=kind)), f"n = {samples}", note)
        return table


class Lines:
    """Prints a view as one line every LINE_EVERY_S seconds. Replaces rich.live.Live if the output is no terminal."""

    def __init__(self, view: View, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic):
        self._view, self._say, self._clock = view, say, clock
        self._said_at = clock()

    def refresh(self) -> None:
        """Print the line if one is due."""
        if self._clock() < self._said_at + LINE_EVERY_S:
            return
        self._said_at = self._clock()
        view, test = self._view, self._view.figures.get("accuracy", kind=Split.TEST)
        self._say(
            f"worker {view.state}: {view.fed:,} of {view.to_feed:,} fed, {view.read:,} read, "
            f"{view.counts['learned']:,} learned, test {percent(test)}, time left {view.time_left}"
        )


def near(path: str) -> str:
    """Return a path as a user would type it in the current folder."""
    return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else path


def count(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:,.0f}"


def decimal(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.1%}"


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Summary of a demo. Accuracies are 0..1. Before the first release the accuracy is 0, because no class is known."""

    run_id: str
    records_read: int
    learned: int
    validation: int
    test: int
    rejected: int
    test_accuracy_before: float
    test_accuracy_after: float
    release: str
    topics: list[str]
    folder: str
    asked: Asked
    """A held-out image, about which a server of the last release was asked."""
    seconds: float
    next_command: str
    """Command that continues this run."""


def summary_table(summary: Summary) -> RenderableType:
    """Return the summary as a table."""
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim")
    rows.add_column(overflow="fold")
    rows.add_row("read", f"{summary.records_read:,} records")
    rows.add_row("learned", f"{summary.learned:,}")
    rows.add_row("held out", f"{summary.validation:,} to decide releases, {summary.test:,} to report accuracy")
    rows.add_row("rejected", f"{summary.rejected:,}")
    before, after = summary.test_accuracy_before, f"[bold]{percent(summary.test_accuracy_after)}[/bold]"
    rows.add_row("test accuracy", f"{percent(before)} before, {after} after" if before else after)
    rows.add_row("release", Text(printable(near(summary.release.removeprefix("file://")))))
    asked = f"image of {summary.asked.label}, held out, sent over HTTP: answer "
    answer = f"{summary.asked.predicted} ({percent(summary.asked.probability)})"
    rows.add_row("served", Text.assemble(printable(asked), (printable(answer), "bold")))
    rows.add_row("topics", Text("\n".join(map(printable, summary.topics))))
    rows.add_row("files", Text(printable(near(summary.folder))))
    rows.add_row("time", f"{summary.seconds:.0f} s")
    rows.add_row("next", Text(summary.next_command, "bold"))
    return Panel(rows, title="[bold]done", border_style="green", padding=(1, 2))
