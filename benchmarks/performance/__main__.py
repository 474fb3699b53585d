"""Honest figures of the worker's speed.

    python -m benchmarks.performance PART [--model M] [--data png|jpeg|DIR] [--batch N] [--rounds N] [--minutes N]

`limit`: a bare training step on one batch in memory, at several settings. `memory`: the learner in memory, with its
stages switched on one by one, and Avalanche. `kafka`: the worker with checkpoints and monitoring, beside both. `loops`:
programs that users would write instead. `replay`: the same with a replay buffer, beside the default strategy.
`checkpoints`: the cost of saves, and the time of a recovery. `growth`: a long stream, and many classes, partitions,
large images and records, and a long backlog. `ranks`: two ranks beside one, and the parts of their steps. `cpu`: the
CPU time of each stage, a flame graph, and an idle worker. `report`: tables and plots of all finished rounds. `all`:
everything.

The sides of a part take turns in each round, and every side has a process of its own. A finished round is a file in
`benchmarks/results/performance/`, and a second start skips it. After the parts' first rounds come their second ones,
and so on, until `--minutes` have passed. `kafka` and `loops` use the best setting that `limit` found. Figures of
different machines cannot be compared. Ratios compare measurements of one round.

On two quiet cores the first round of everything takes about 40 minutes, and a further one 25 minutes. An hour gives all
parts a round, and most of them two. `--records` shortens `growth`, `--model` leaves out other networks, `--rounds 1`
ends after the first round. The data of the broker and the states take up to 15 GB of disk, and the largest network 12
GB of memory.
"""

import signal
import sys
import time
from contextlib import ExitStack
from enum import StrEnum
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from benchmarks.performance import (
    checkpoints,
    cpu,
    decoding,
    growth,
    inputs,
    limit,
    loops,
    memory,
    ranks,
    report,
    worker,
)
from benchmarks.performance import rounds as turns
from benchmarks.performance.inputs import RECORDS, Topics
from benchmarks.performance.rounds import TOPIC, Sides, Subject, console
from stream_learner.local.broker import Broker
from stream_learner.local.datasets import Dataset, Example

DOCS = Path(__file__).parents[2] / "docs" / "benchmarks"


class Part(StrEnum):
    limit = "limit"
    memory = "memory"
    kafka = "kafka"
    loops = "loops"
    replay = "replay"
    checkpoints = "checkpoints"
    growth = "growth"
    ranks = "ranks"
    cpu = "cpu"
    report = "report"
    all = "all"


class Case(NamedTuple):
    """A table of a part. Without a size or data, those of the command count.

    `most_rounds` limits the rounds of what takes long, or has many figures in a round.
    """

    name: str
    model: str
    batch: int = 32
    size: tuple[int, int, int] | None = None
    data: str | None = None
    most_rounds: int = 1000


RGB = (32, 32, 3)
# ResNets of others need images of at least 33 pixels. ResNet-50 is measured at the size for which it is made.
TIMM, RESNET18, RESNET50 = (40, 40, 3), (64, 64, 3), (224, 224, 3)
CASES = {
    Part.limit: [
        Case("limit", "mlp"),
        Case("limit", "cnn"),
        Case("limit", "cnn", 128),
        Case("limit", "resnet18_slim"),
        Case("limit", "resnet18", size=RESNET18),
        Case("limit", "resnet50", size=RESNET50),
    ],
    Part.memory: [
        *(Case("memory", model) for model in ("mlp", "cnn", "resnet18_slim")),
        Case("avalanche", "cnn"),
    ],
    Part.kafka: [
        Case("kafka", "mlp"),
        Case("kafka", "cnn"),
        Case("kafka", "cnn", 128),
        Case("kafka", "resnet18_slim"),
        Case("kafka", "resnet18", size=RESNET18),
    ],
    Part.loops: [Case("loops", "mlp"), Case("loops", "cnn")],
    Part.replay: [Case("replay", "mlp"), Case("replay", "cnn")],
    Part.checkpoints: [
        Case("checkpoints", "mlp", 32, (28, 28, 1), "jpeg32"),
        Case("checkpoints", "cnn", 32, RGB, "jpeg32"),
        Case("checkpoints", "timm:resnet18", 32, TIMM, "jpeg32"),
        Case("checkpoints", "timm:resnet50", 32, TIMM, "jpeg32", 1),
        Case("checkpoints", "timm:wide_resnet101_2", 8, TIMM, "jpeg32", 1),
        Case("memories", "mlp", 32, (128, 128, 3), "noise128", 2),
    ],
    Part.ranks: [
        *(Case("ranks", model, batch) for model in ("cnn", "resnet18_slim") for batch in (32, 128)),
        *(Case("ranks from Kafka", model) for model in ("cnn", "resnet18_slim")),
        *(Case("idle rank", model) for model in ("mlp", "cnn")),
        *(Case("beside", model) for model in ("cnn", "resnet18_slim")),
        Case("exchanges", "cnn"),
        Case("decoding", "cnn"),
    ],
    Part.cpu: [*(Case("cpu", model) for model in ("mlp", "cnn")), Case("idle", "mlp", most_rounds=2)],
    Part.growth: [
        Case("long", "mlp", most_rounds=1),
        Case("classes", "cnn", most_rounds=2),
        Case("partitions", "cnn", most_rounds=2),
        Case("images", "cnn", 32, RGB, "jpeg", 2),
        Case("records", "cnn", 32, RGB, "jpeg32", 2),
        Case("backlog", "cnn", 32, (28, 28, 1), "flat28", 2),
    ],
}


def main(
    part: Annotated[Part, typer.Argument(help="Part to measure, `report`, or `all`.")],
    model: Annotated[list[str] | None, typer.Option(help="Only this model; may be repeated.")] = None,
    data: Annotated[
        str, typer.Option(help="`png` (28 px, grey), `jpeg` (32 px, RGB), or a folder for `feed`.")
    ] = "png",
    batch: Annotated[int | None, typer.Option(min=1, help="Images in a batch, instead of those of the part.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each side.")] = 3,
    minutes: Annotated[float, typer.Option(help="Start no further round after this time.")] = 60.0,
    records: Annotated[int, typer.Option(min=100_000, help="`growth`: records of the long stream.")] = 2_000_000,
    compiled: Annotated[bool, typer.Option("--compile", help="`limit`: try torch.compile, too.")] = False,
) -> None:
    """Measure a part of the worker's speed, or write the report. Ends with 1 if a round failed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the broker's data are deleted
    complete = True
    if part is not Part.report:
        cases = [case for p, cases in CASES.items() if part in (p, Part.all) for case in cases]
        chosen = [case for case in cases if model is None or case.model in model]
        if not chosen:
            raise typer.BadParameter(f"{part} has {', '.join(sorted({case.model for case in cases}))}")
        complete = _measure(chosen, inputs.images(data), batch, rounds, 60 * minutes, records, compiled)
    if part in (Part.report, Part.all):
        for file in report.write(DOCS):
            console.print(f"wrote {file}")
    if not complete:
        raise typer.Exit(1)


def _measure(
    cases: list[Case],
    dataset: Dataset,
    batch: int | None,
    rounds: int,
    seconds: float,
    records: int,
    compiled: bool,
) -> bool:
    """Measure until the time is up. Return whether no round failed."""
    examples, until = list(dataset), time.monotonic() + seconds
    own_size = dataset.height, dataset.width, dataset.channels
    most_rounds = {
        Subject(c.name, c.model, c.data or dataset.name, batch or c.batch, c.size or own_size): c.most_rounds
        for c in cases
    }
    with ExitStack() as stack:
        topics, failed = Topics(stack), False
        for number, subject in product(range(rounds), most_rounds):
            if number >= most_rounds[subject]:
                continue
            if time.monotonic() > until:
                console.print("the time is up; a second start measures the rest", style="yellow")
                break
            try:
                turns.run(subject, partial(_sides, subject, examples, topics, records, compiled), number)
            except Exception as error:  # noqa: BLE001 (the other rounds take an hour, so they are measured anyway)
                console.print(f"round {number} of {subject.part}, {subject.model} failed: {error!r}", style="red")
                failed = True
    return not failed


def _sides(subject: Subject, examples: list[Example], topics: Topics, records: int, compiled: bool) -> Sides:
    def filled() -> Broker:
        return topics.fill(TOPIC, examples, RECORDS)

    match subject.part:
        case "limit":
            return limit.sides(subject, compiled)
        case "memory":
            return memory.sides(subject, examples)
        case "avalanche":
            return loops.sides_with_avalanche(subject, examples)
        case "kafka":
            return worker.sides(subject, examples, filled())
        case "loops":
            return loops.sides(subject, filled())
        case "replay":
            return loops.sides_with_replay(subject, filled())
        case "checkpoints":
            return checkpoints.sides(subject, topics)
        case "memories":
            return checkpoints.sides_with_memories(subject, topics)
        case "ranks":
            return ranks.sides(subject)
        case "ranks from Kafka":
            return ranks.kafka_sides(subject, topics, examples)
        case "idle rank":
            return ranks.idle_rank_sides(subject, topics, examples)
        case "beside":
            return ranks.beside_sides(subject)
        case "exchanges":
            return ranks.exchange_sides()
        case "decoding":
            return decoding.sides(subject)
        case "cpu":
            return cpu.sides(subject, filled())
        case "idle":
            return cpu.idle_sides(subject, topics, examples)
        case _:
            return growth.sides(subject, topics, examples, records)


if __name__ == "__main__":
    typer.run(main)
