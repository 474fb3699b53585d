"""What the demo shows while it runs, and the summary at its end."""

import math
import os
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from stream_learner.local.scrape import Figures
from stream_learner.text import printable

SPARKS = " ▁▂▃▄▅▆▇█"
RATE_WINDOW_S = 3.0


@dataclass
class View:
    """The figures of one demo, drawn anew at every scrape. Times are monotonic seconds."""

    title: str
    to_feed: int
    fed: int = 0
    pid: int = 0
    restarts: int = 0
    state: str = "starting"
    figures: Figures | None = None
    read: int = 0
    _reads: deque[tuple[float, float]] = field(default_factory=deque)
    _prequential: deque[float] = field(default_factory=lambda: deque(maxlen=48))

    def worker(self, pid: int, restarts: int) -> None:
        if pid != self.pid:
            self.state = "recovering" if restarts else "starting"
        self.pid, self.restarts = pid, restarts

    def stopping(self) -> None:
        self.state = "stopping: last save"

    def update(self, figures: Figures | None, now: float) -> None:
        # A worker that starts again knows nothing yet; what was seen last stays.
        if figures is None or (self.figures and not figures.positions()):
            return
        self.figures = figures
        self.state = "learning"
        records = figures.get("records_in_total")
        if self._reads and records < self._reads[-1][1]:  # a new process counts from 0
            self._reads.clear()
        self._reads.append((now, records))
        while now - self._reads[0][0] > RATE_WINDOW_S:
            self._reads.popleft()
        prequential = figures.get("accuracy", kind="prequential")
        if not math.isnan(prequential):
            self._prequential.append(prequential)

    @property
    def rate(self) -> float:
        """Records read per second, over the last seconds."""
        if len(self._reads) < 2:
            return 0.0
        (before, first), (now, last) = self._reads[0], self._reads[-1]
        return (last - first) / (now - before) if now > before else 0.0

    def __rich__(self) -> RenderableType:
        figures = self.figures or Figures({})
        bars = Table.grid(padding=(0, 2), expand=True)
        bars.add_column(width=8)
        bars.add_column(ratio=1)
        bars.add_column(justify="right", width=16)
        bars.add_row("fed", ProgressBar(self.to_feed, self.fed), f"{self.fed:,} / {self.to_feed:,}")
        bars.add_row("learned", ProgressBar(self.to_feed, self.read), f"{self.read:,} / {self.to_feed:,}")

        numbers = Table.grid(padding=(0, 3))
        for _ in range(4):
            numbers.add_column()
        lag = figures.total("lag_records") if figures.samples else math.nan
        numbers.add_row(
            *figure("records/s", f"{self.rate:,.0f}"),
            *figure("checkpoint", count(figures.get("checkpoint_sequence"))),
        )
        numbers.add_row(*figure("steps", count(figures.get("steps_total"))), *figure("lag, records", count(lag)))
        numbers.add_row(
            *figure("loss", decimal(figures.get("loss"))),
            *figure(
                "releases",
                f"{count(figures.get('releases_total'))} (refused {count(figures.get('release_refusals_total'))})",
            ),
        )
        numbers.add_row(
            *figure("rejected", rejected(figures)),
            *figure("in memory", count(figures.total("memory_items"))),
        )

        accuracies = Table.grid(padding=(0, 2))
        accuracies.add_column(style="dim", width=12)
        accuracies.add_column(justify="right", width=7)
        accuracies.add_column()
        spark = "".join(SPARKS[round(a * (len(SPARKS) - 1))] for a in self._prequential)
        accuracies.add_row("prequential", percent(figures.get("accuracy", kind="prequential")), Text(spark, "green"))
        accuracies.add_row("validation", percent(figures.get("accuracy", kind="validation")), "")
        accuracies.add_row("test", percent(figures.get("accuracy", kind="test")), "")

        worker = f"worker {self.state}" + (f", restarted {self.restarts} x" if self.restarts else "")
        hint = f"   kill -9 {self.pid} loses nothing; Ctrl-C stops all" if self.state == "learning" else ""
        footer = Text.assemble((worker, "bold"), (hint, "dim"))
        body = Group(bars, Text(), numbers, Text(), accuracies, Text(), footer)
        return Panel(body, title=f"[bold]{self.title}", border_style="blue", padding=(1, 2))


def rejected(figures: Figures) -> str:
    """How many records were rejected, and why."""
    counts: Counter[str] = Counter()
    for (name, labels), value in figures.samples.items():
        if name == "stream_learner_records_rejected_total" and value:
            counts[dict(labels)["reason"]] += int(value)
    return str(counts.total()) + (f" ({', '.join(sorted(counts))})" if counts else "")


def near(path: str) -> str:
    """A path as one would type it here."""
    return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else path


def figure(name: str, value: str) -> tuple[Text, Text]:
    return Text(name, "dim"), Text(value, "bold")


def count(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:,.0f}"


def decimal(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.1%}"


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a demo did. Accuracies are 0..1; before the first release a model knows no class and gets none right."""

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
    seconds: float


def summary_table(summary: Summary) -> RenderableType:
    """The demo's last words."""
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim")
    rows.add_column(overflow="fold")
    rows.add_row("read", f"{summary.records_read:,} records")
    rows.add_row("learned", f"{summary.learned:,}")
    rows.add_row("held out", f"{summary.validation:,} to decide releases, {summary.test:,} to report accuracy")
    rows.add_row("rejected", f"{summary.rejected:,}")
    before, after = percent(summary.test_accuracy_before or None), percent(summary.test_accuracy_after)
    accuracy = f"{before} before, [bold]{after} after[/bold]"
    rows.add_row("test accuracy", accuracy)
    rows.add_row("release", Text(printable(near(summary.release.removeprefix("file://")))))
    rows.add_row("topics", Text("\n".join(map(printable, summary.topics))))
    rows.add_row("files", Text(printable(near(summary.folder))))
    rows.add_row("time", f"{summary.seconds:.0f} s")
    return Panel(rows, title="[bold]done", border_style="green", padding=(1, 2))
