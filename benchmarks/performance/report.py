"""Tables and plots of the finished rounds."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.performance import charts, cpu, goals, loops, tables
from benchmarks.performance.rounds import QUIET_CORES, RESULTS, Subject, common, cores_elsewhere, finished
from benchmarks.performance.summary import ratio, sentences
from benchmarks.runs import Run, file_name
from stream_learner.errors import DataError

PAGE = "performance.md"
INTRODUCTION = """# How fast it learns

Made by `python -m benchmarks.performance report` from the rounds in `benchmarks/results/performance/`.

* Each figure is the median of the rounds, with the least and the greatest in brackets. In each round, all sides of a
  table take turns, each in a process of its own. Ratios compare measurements of one round. A figure without brackets
  is of a single round.
* Figures of different machines cannot be compared. Each part names the machine and the commit of its rounds. The main
  figures may be of several machines, so compare only figures of one line.
* *Elsewhere*: the cores that other programs kept busy, at most. Above 0.1 the figures are unreliable. The broker of
  the measurement does not count. The kernel's clocks are coarse, so the figure can be slightly below zero.
* *CPU* and *peak* are those of the side's process and of the processes that it started.
* `png28`: grey images of 28 x 28 pixels, made up. `jpeg32`: RGB images of 32 x 32 pixels, made up.
"""
GOALS = """\
The goals were set before anything was measured. Ratios are of records/s. A stall below zero means that a save stops the
training thread for less time than a step takes.
"""
TITLES = {
    "limit": "The limit",
    "memory": "In memory, stage by stage",
    "avalanche": "In memory, beside Avalanche",
    "kafka": "From Kafka",
    "loops": "Beside the programs that users would write",
    "replay": "The default strategy beside hand-written replay",
    "checkpoints": "Saves",
    "memories": "Saves with a large memory",
    "long": "A long stream",
    "classes": "Many classes",
    "partitions": "Many partitions",
    "images": "Large images",
    "records": "Large records",
    "backlog": "A long backlog at the start",
    "ranks": "Two ranks in memory",
    "ranks from Kafka": "Two ranks from Kafka",
    "idle rank": "A rank without records",
    "beside": "Two runs beside each other",
    "exchanges": "Collectives of two ranks",
    "decoding": "Decoding",
    "cpu": "CPU time",
    "idle": "An idle worker",
}
NOTES = {
    "limit": """A bare loop: one batch stays in memory, and each turn is one step with Adam. Nothing is read, decoded,
predicted or counted. `NHWC` is the memory layout channels-last, and `malloc` keeps freed memory in the process. On the
same machine, the limit of another part may differ by a quarter, because the machine's speed changes.""",
    "memory": """Each stage also has all stages above it. *Step* is the learner's own step on one batch in memory.
*Predict* is the prediction before learning, with its counts, weights and ledger. A forward pass that both
share counts for the step. Held-out records are not learned, so their share of the time is negative. Other negative
shares are noise: each stage has a process of its own. The last row is the default of the worker.""",
    "avalanche": """Both learn the same encoded images from memory, with the same network, Adam and batch. *Avalanche*
is its strategy `Naive` (Lomonaco et al. 2021), which decodes with Pillow. *Learner* decodes, predicts each batch before
it learns the batch, and counts.""",
    "kafka": """The worker saves every 5 s, and its metrics are read. *Plain* is learning as a loop does it: Adam, no
replay, no average, no augmentation, nothing held out. *Default* is the worker's default, which replays three images
with each new one. *Limit* is measured again with the setting that was best in the part about limits.""",
    "loops": """The same records, network and batch. The loops decode with Pillow and train with Adam as PyTorch does by
default. They do nothing else: no checkpoints, no predictions before learning, no metrics. The worker does all of this,
but learns as plainly. The programs are in `benchmarks/loops/`.""",
    "replay": """The worker's default strategy (replay, average, augmentation, Muon), beside the loops with a replay
buffer. In both, each new image is learned together with three replayed ones. Nothing is held out.""",
    "checkpoints": """A worker that saves often, without replay, with Adam and an average. A state has four times the
bytes of the parameters. A *stall* is the time for which a save stops the training thread. *A batch* is the mean time of
a batch without a save while nothing is published. The *cost of a save* is its stall, and the training time that is
lost because publishing slows down the batches beside it. The start is that of a second worker, which resumes the run.
The batch has 8 images for the largest network, and 32 for the others.""",
    "memories": """A memory of noise images of 48 KiB, which is full before the measurement. A save writes the state and
the images that are new since the last save, not the whole memory.""",
    "long": """The default worker at full speed. The slopes count from the time when a quarter of the stream is learned,
because the memory fills before. They are fitted to the means of 20 blocks, and ± is the standard error.""",
    "classes": "The default worker on the same images, with labels of 10 to 10,000 classes.",
    "partitions": "The default worker on a topic with 1 to 600 partitions.",
    "images": "The default worker on square JPEGs of several sizes, which it scales to 32 pixels a side.",
    "records": """The default worker on JPEGs of 32 pixels a side. Comments in the files make the records as large.""",
    "backlog": """The default worker on a topic that holds this number of records at the start. The images are PNGs
of one grey, so that the topic is small.""",
    "ranks": """The default learner on random images, with 96 replayed images beside 32 new ones in a step, or 128
beside 128. *1 rank* has both shards of a run and one thread, and *2 ranks* have a shard and a thread each. *2 threads*
is one process without shards. *Collectives* is the time in which rank 0 exchanged data with the other rank or
waited for it, and *sent* is what rank 0 sent. The other sides show what a step, a shard and an image cost.""",
    "ranks from Kafka": """The same with the worker (`run --ranks`) on a topic of two partitions, with 96 replayed
images beside 32 new ones in a step. The worker saves every 5 s.""",
    "idle rank": """Two ranks from Kafka as above, with records in both partitions and in only one. The sums of a step
need all ranks, so a rank without records takes part in every step. A step then has 16 new images instead of 32.""",
    "beside": """The side *1 rank* of the part above, alone and beside a second process of its own kind. The two
exchange nothing. Their ratio is what two ranks lose on this machine before they exchange anything.""",
    "exchanges": """Two processes on one machine (gloo, loopback) that do nothing else. *Summed* adds the vectors of the
ranks in the order of the tree, *gathered* sends each rank's bytes to the other rank.""",
    "decoding": """The decoder alone, on records in memory, on one thread. The images keep their size.""",
    "cpu": """CPU time of a worker that learns at full speed. The main thread is divided into stages by the samples of
py-spy. The threads of torch calculate together with the main thread. The flame graph is of the default worker.""",
    "idle": "CPU time of a worker that waits for records.",
}
Draw = Callable[[str, list[Run], Path], None]
# The table and the plot of each part. The other parts have those of `sides`.
TABLES: dict[str, Callable[[list[Run]], str]] = {
    "memory": tables.stages,
    "memories": lambda rounds: tables.saves({side: (rounds, side) for side in common(rounds)}),
    "long": tables.long,
    "cpu": tables.cpu,
    "idle": tables.idle,
    "ranks": tables.ranks,
    "ranks from Kafka": tables.ranks,
    "idle rank": tables.ranks,
    "beside": tables.ranks,
    "exchanges": tables.exchanges,
}
PLOTS: dict[str, Draw] = {
    "memory": charts.stages,
    "memories": charts.stalls,
    "long": charts.long,
    "cpu": charts.cpu,
    "idle": charts.idle,
    "exchanges": charts.exchanges,
}


def write(output: Path, folder: Path = RESULTS) -> list[Path]:
    """Write the page and its plots. Return the files. Raises DataError without a finished round."""
    pages, files, main_figures = [], [output / PAGE], []
    for part, title in TITLES.items():
        found = finished(part, folder)
        if not found:
            continue
        main_figures += [f"* {sentence}\n" for sentence in sentences(part, found)]
        pages.append(f"## {title}\n\n{NOTES[part]}\n")
        if part == "checkpoints":
            rounds = [round_ for rounds in found.values() for round_ in rounds]
            pages += [f"{_made_on(rounds)}\n", tables.checkpoints(found)]
            files.append(output / f"performance-{part}.png")
            charts.networks(title, {subject.model: rounds for subject, rounds in found.items()}, files[-1])
            pages.append(f"![{title}]({files[-1].name})\n")
            continue
        for subject, rounds in found.items():
            name = f"{subject.model}, {subject.data}, batch {subject.batch}"
            height, width, channels = subject.size
            files.append(output / file_name(f"performance-{part}-{subject.model}-{subject.data}-{subject.batch}.png"))
            pages.append(f"### {title}: {name}\n\nNetwork input: {height} x {width} x {channels}. {_made_on(rounds)}\n")
            pages.append(TABLES.get(part, tables.sides)(rounds))
            if ratios := comparisons(subject, rounds):
                pages.append(tables.table(("ratio", "of the rounds"), ratios.items()))
            pages.append(f"![{title}: {name}]({files[-1].name})\n")
            PLOTS.get(part, charts.sides)(f"{title}: {name}", rounds, files[-1])
            for flame in _flames(subject, output) if part == "cpu" else ():
                pages.append(f"[Flame graph]({flame.name})\n")
                files.append(flame)
    if not pages:
        raise DataError(f"there is no finished round in {folder}; run a part first")
    shown = f"## Main figures\n\n{''.join(main_figures)}" if main_figures else ""
    judged = f"## Goals\n\n{GOALS}\n{tables.table(('figure', 'goal', 'measured', ''), goals.rows(folder))}"
    (output / PAGE).write_text("\n".join([INTRODUCTION, shown, judged, *pages]))
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
    elif subject.part == "avalanche":
        pairs["learner / Avalanche"] = "learner", ["Avalanche"]
    elif subject.part in ("ranks", "ranks from Kafka"):
        pairs = {f"2 ranks / {name}": ("2 ranks", [name]) for name in ("1 rank", "2 threads")}
    elif subject.part == "beside":
        pairs = {"beside another / alone": ("beside another", ["alone"])}
    elif rivals:
        pairs = {f"worker / {name}": ("worker", [name]) for name in rivals}
        pairs["worker / the fastest loop of the round"] = "worker", rivals
        if "limit" in sides:
            pairs["worker / limit"] = "worker", ["limit"]
    return {name: ratio(rounds, side, others) for name, (side, others) in pairs.items()}


def _flames(subject: Subject, output: Path) -> Iterator[Path]:
    """Copy the flame graph of the default worker beside the page, without its script and its command line.

    Return the copy, which may be of an earlier report.
    """
    flame = cpu.flame(subject, "default")
    copy = output / file_name(f"performance-{flame.name}")
    if flame.exists():
        drawn = re.sub(r"<script.*?</script>", "", flame.read_text(), flags=re.DOTALL).replace(
            ' onload="init(evt)"', ""
        )
        drawn = re.sub(r'(<text id="title"[^>]*>)[^<]*', r"\1CPU time of the default worker", drawn)
        copy.write_text(drawn)
    if copy.exists():
        yield copy


def _made_on(rounds: list[Run]) -> str:
    """Return the number of rounds, the machine and the commits, and whether other programs were busy."""
    described = sorted({"{processor}, {cores} cores, PyTorch {torch}".format(**r["machine"]) for r in rounds})
    commits = sorted({r["machine"]["commit"] for r in rounds})
    busy = cores_elsewhere(rounds)
    noise = f" **Other programs kept up to {busy:.2f} cores busy.**" if busy > QUIET_CORES else ""
    count = max(round_["round"] for round_ in rounds) + 1
    return f"Rounds: {count}. {'; '.join(described)}; commit {', '.join(commits)}.{noise}"
