"""Honest figures of the worker's throughput.

    python -m benchmarks.performance PART [--model M] [--data png|jpeg|DIR] [--batch N] [--rounds N]

`limit`: a bare training step on one batch in memory, at several settings. `memory`: the learner in memory, with its
stages switched on one by one. `kafka`: the worker with checkpoints and monitoring, beside both. `loops`: programs that
users would write instead. `replay`: the same with a replay buffer, beside the default strategy. `report`: tables and
plots of all finished rounds. `all`: everything.

The sides of a part take turns in each round, and every side has a process of its own. A finished round is a file in
`benchmarks/results/performance/`, and a second start skips it. `kafka` and `loops` use the best setting that `limit`
found. Figures of different machines cannot be compared. Ratios compare measurements of one round.
"""

from collections.abc import Callable
from contextlib import ExitStack
from enum import StrEnum
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.progress import Progress

from benchmarks.performance import inputs, limit, loops, memory, report, worker
from benchmarks.performance import rounds as turns
from benchmarks.performance.rounds import Sides, Subject, console
from stream_learner import config
from stream_learner.local.broker import Broker
from stream_learner.local.datasets import Dataset, Example
from stream_learner.streams import topics

DOCS = Path(__file__).parents[2] / "docs" / "benchmarks"


class Part(StrEnum):
    limit = "limit"
    memory = "memory"
    kafka = "kafka"
    loops = "loops"
    replay = "replay"
    report = "report"
    all = "all"


MODELS = {
    Part.limit: ["mlp", "cnn", "resnet18_slim", "resnet18", "resnet50"],
    Part.memory: ["mlp", "cnn", "resnet18_slim"],
    Part.kafka: ["mlp", "cnn", "resnet18_slim"],
    Part.loops: ["mlp", "cnn"],
    Part.replay: ["mlp", "cnn"],
}
# Sizes at which a network is measured whatever the data are.
SIZES = {"resnet50": (224, 224, 3)}


def main(
    part: Annotated[Part, typer.Argument(help="Part to measure, `report`, or `all`.")],
    model: Annotated[
        list[str] | None, typer.Option(help="Model; may be repeated. The part's own when left out.")
    ] = None,
    data: Annotated[
        str, typer.Option(help="`png` (28 px, grey), `jpeg` (32 px, RGB), or a folder for `feed`.")
    ] = "png",
    batch: Annotated[int, typer.Option(min=1, help="Images in a batch.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each side.")] = 3,
    compiled: Annotated[bool, typer.Option("--compile", help="`limit`: try torch.compile, too.")] = False,
) -> None:
    """Measure a part of the worker's throughput, or write the report."""
    if part is not Part.report:
        chosen = [p for p in MODELS if part in (p, Part.all)]
        _measure(chosen, model, inputs.images(data), batch, rounds, compiled)
    if part in (Part.report, Part.all):
        for file in report.write(DOCS):
            console.print(f"wrote {file}")


def _measure(
    parts: list[Part], models: list[str] | None, dataset: Dataset, batch: int, rounds: int, compiled: bool
) -> None:
    examples = list(dataset)
    with ExitStack() as stack:
        broker: Broker | None = None

        def filled() -> Broker:
            nonlocal broker
            if broker is None:
                broker = _filled(stack, dataset)
            return broker

        for part in parts:
            for model in models or MODELS[part]:
                size = SIZES.get(model, (dataset.height, dataset.width, dataset.channels))
                subject = Subject(part.value, model, dataset.name, batch, size)
                turns.run(subject, partial(_sides, subject, examples, filled, compiled), rounds)


def _sides(subject: Subject, examples: list[Example], filled: Callable[[], Broker], compiled: bool) -> Sides:
    match subject.part:
        case Part.limit:
            return limit.sides(subject, compiled)
        case Part.memory:
            return memory.sides(subject, examples)
        case Part.kafka:
            return worker.sides(subject, examples, filled())
        case Part.loops:
            return loops.sides(subject, filled())
        case _:
            return loops.sides_with_replay(subject, filled())


def _filled(stack: ExitStack, dataset: Dataset) -> Broker:
    """Start a broker, and fill the input topic."""
    folder = Path(stack.enter_context(TemporaryDirectory()))
    broker = stack.enter_context(Broker(folder / "kafka"))
    kafka = [f"kafka.bootstrap_servers={broker.bootstrap_servers}", f"input.topics=['{inputs.TOPIC}']", "run.id=input"]
    topics.create(config.load(None, kafka), input_partitions=1)
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("filling the topic", total=None)
        inputs.fill(broker, dataset, lambda done, total: progress.update(bar, completed=done, total=total))
    return broker


if __name__ == "__main__":
    typer.run(main)
