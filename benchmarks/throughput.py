"""Throughput of the worker on a real Kafka, compared with the same learner without Kafka and with bare torch.

    python benchmarks/throughput.py [--model M] [--data DIR] [--rounds N]

Each contender is a process of its own, and they take turns in each round:

- `bare_torch`: only the model's training step, on one batch (stream and replay) that stays in memory;
- `in_memory`: `Decoder`, `batches()` and `Learner` on encoded images in memory;
- `worker`: `python -m stream_learner run` on a topic that was filled before, without checkpoints;
- `worker_saving`: the same, with a checkpoint every 10 s.

All use Adam without averaging or augmentation, so that the ratios show the cost of reading, decoding and counting.
`learning.py` measures the cost and the benefit of the default settings.

The default data are generated JPEG images of 32 x 32 pixels, about as costly to decode as those of CIFAR-10. The last
line is one JSON object. Each figure is the minimum, median and maximum over the rounds, and each ratio compares
measurements of one round. Figures of different machines cannot be compared, but their ratios can.
"""

import io
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.observation import Measurement, Observation, between, observe
from stream_learner import config
from stream_learner.formats.record import Gap, Record
from stream_learner.local.broker import Broker, free_port
from stream_learner.local.datasets import Dataset, Example, open_dataset
from stream_learner.local.feeder import feed
from stream_learner.local.processes import Child
from stream_learner.local.scrape import scrape
from stream_learner.streams import topics

MODELS = ("mlp", "cnn", "resnet18_slim")
CONTENDERS = ("bare_torch", "in_memory", "worker", "worker_saving")
RATIOS = (
    ("in_memory", "bare_torch"),
    ("worker", "bare_torch"),
    ("worker", "in_memory"),
    ("worker_saving", "in_memory"),
    ("worker_saving", "worker"),
)
TOPIC = "images"
IMAGES = 10_000
CLASSES = 10
POLLED = 500
WARM_UP_S = 2.0
MEASURED_S = 5.0
SAVE_EVERY_S = 10.0
NEVER = 10**9
QUIET_CORES = 0.1
MIB = 1024 * 1024

console = Console(highlight=False, width=120)


# -- the contenders that run in memory


def bare_torch(overrides: list[str], examples: list[Example]) -> Iterator[float]:
    """Train on one batch forever, and yield the number of input records that each step stands for."""
    import torch
    from torch.nn import functional as F

    from stream_learner import networks as models
    from stream_learner.learning.placement import place
    from stream_learner.learning.process import set_up_torch
    from stream_learner.learning.spec import spec_of

    del examples
    settings = config.load(None, overrides)
    set_up_torch(settings.learning)
    placement = place(settings.learning, models.factory(settings.model.name))
    model = models.build(spec_of(settings.model, CLASSES), own=settings.model.name)
    model.to(placement.device, memory_format=placement.memory_format)  # pyright: ignore
    optimizer = torch.optim.Adam(model.parameters(), settings.learning.learning_rate, fused=True)
    samples = settings.batch.size + settings.replay_size
    size = settings.model.height, settings.model.width, settings.model.channels
    images_NHWC = torch.randint(256, (samples, *size), dtype=torch.uint8, device=placement.device)
    labels = torch.randint(CLASSES, (samples,), device=placement.device)
    records = settings.batch.size / (1 - settings.split.validation - settings.split.test)
    while True:
        optimizer.zero_grad()
        with placement.training():
            loss = F.cross_entropy(model(images_NHWC).float(), labels)
        loss.backward()
        optimizer.step()
        yield records


def in_memory(overrides: list[str], examples: list[Example]) -> Iterator[float]:
    """Learn the records of the topic without Kafka, and yield the number of records that each batch covers."""
    from threading import Event

    from stream_learner.formats.decoder import Decoder
    from stream_learner.learning.learner import Learner
    from stream_learner.learning.process import set_up_torch
    from stream_learner.run.batches import batches
    from stream_learner.run.driver import Driver
    from stream_learner.run.progress import Progress

    messages = [(e.id.encode(), e.image, [("label", e.label.encode()), ("id", e.id.encode())]) for e in examples]

    class Source:
        offset = 0

        def poll(self, timeout_s: float) -> list[Record | Gap]:
            del timeout_s
            begin, self.offset = self.offset, self.offset + POLLED
            return [Record(TOPIC, 0, i, 0, *messages[i % len(messages)]) for i in range(begin, self.offset)]

        def took(self, seconds: float) -> None:
            pass

    settings = config.load(None, overrides)
    set_up_torch(settings.learning)
    driver = Driver(Learner(settings), Progress({TOPIC: {0: 0}}))
    decode = Decoder.from_settings(settings)
    for batch in batches(Source(), decode, driver.progress.positions, settings.batch, Event()):
        yield driver.learn(batch).records


def measure_here(
    contender: Callable[[list[str], list[Example]], Iterator[float]], overrides: list[str], examples: list[Example]
) -> Measurement:
    """Run a contender in this process until it is measured."""
    from stream_learner.run.process import keep_freed_memory

    keep_freed_memory()  # as the worker does
    turns = contender(overrides, examples)
    next(turns)

    def run_for(seconds: float) -> float:
        until, records = time.monotonic() + seconds, 0.0
        while time.monotonic() < until:
            records += next(turns)
        return records

    run_for(WARM_UP_S)
    first = observe(os.getpid(), 0)
    return between(first, observe(os.getpid(), run_for(MEASURED_S)))


def measure_apart(contender: Callable, overrides: list[str], examples: list[Example]) -> Measurement:
    """Run a contender in a new process until it is measured."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(measure_here, contender, overrides, examples).result()


# -- the worker


class Input:
    """The input topic, filled ahead of its reader: the data set repeatedly, always in the same order."""

    def __init__(self, broker: Broker, dataset: Dataset):
        self.records = 0
        self._kafka = broker.settings
        self._dataset = dataset

    def fill(self, records: int) -> None:
        """Fill the topic until it holds at least this number of records."""
        epochs = math.ceil((records - self.records) / len(self._dataset))
        if epochs > 0:
            self.records += feed(self._dataset, self._kafka, TOPIC, order=as_it_is, epochs=epochs).records


def as_it_is(targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    del rng
    return np.arange(len(targets))


def measure_worker(overrides: list[str], measured_s: float, filled: int, log: Path) -> Measurement:
    """Run `stream-learner run` until it is measured from outside, by its metrics page."""
    settings = config.load(None, overrides)
    topics.create(settings)
    with Child(["run", *(word for override in overrides for word in ("--set", override))], log) as worker:

        def look() -> Observation:
            code = worker.ended()
            if code is not None:
                raise worker.failure("worker", code)
            figures = scrape(settings.monitoring.port)
            return observe(worker.pid, figures.total("records_in_total") if figures else 0)

        while not look().records:
            time.sleep(0.1)
        time.sleep(WARM_UP_S)
        first = look()
        time.sleep(measured_s)
        last = look()
    if last.records >= filled:
        raise RuntimeError(f"the worker read all {filled} records before it was measured")
    return between(first, last)


# -- the whole


def made_up() -> Dataset:
    """Return JPEG images of 32 x 32 pixels: ten colour patterns with noise."""
    random = np.random.default_rng(0)
    patterns = random.integers(64, 192, (CLASSES, 8, 8, 3))
    targets = random.integers(CLASSES, size=IMAGES).tolist()
    images = []
    for target in targets:
        pixels_HWC = (patterns[target] + random.integers(-64, 64, (8, 8, 3))).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels_HWC).resize((32, 32), Image.Resampling.BICUBIC).save(file, "jpeg", quality=90)
        images.append(file.getvalue())
    labels, ids = [str(label) for label in range(CLASSES)], [str(index) for index in range(IMAGES)]
    return Dataset("made-up images", labels, True, targets, ids, 32, 32, 3, images.__getitem__)


def mixed_sample(dataset: Dataset) -> Dataset:
    """Return some examples of a data set, mixed, with their images in memory."""
    indices = np.random.default_rng(0).permutation(len(dataset))[:IMAGES].tolist()
    targets, ids = [dataset.targets[i] for i in indices], [dataset.ids[i] for i in indices]
    return replace(dataset, targets=targets, ids=ids, read=[dataset.read(i) for i in indices].__getitem__)


def measure(
    common: list[str], model: str, rounds: int, examples: list[Example], topic: Input, folder: Path
) -> dict[str, list[Measurement]]:
    """Measure every contender once in each round."""
    found: dict[str, list[Measurement]] = {name: [] for name in CONTENDERS}
    for number in range(rounds):
        # In alternating order, so that a machine that becomes slower or faster favours no contender.
        for name in CONTENDERS if number % 2 == 0 else reversed(CONTENDERS):
            saving = name == "worker_saving"
            overrides = [
                *common,
                f"run.id={model}.{number}.{name}",
                f"model.name={model}",
                f"checkpoint.every_s={SAVE_EVERY_S if saving else NEVER}",
                f"monitoring.port={free_port()}",
            ]
            if name == "bare_torch":
                measured = measure_apart(bare_torch, overrides, examples)
            elif name == "in_memory":
                measured = measure_apart(in_memory, overrides, examples)
            else:
                measured_s = SAVE_EVERY_S if saving else MEASURED_S  # a whole period holds one checkpoint
                fastest = max(m.records_per_s for m in found["in_memory"])
                topic.fill(int(1.5 * fastest * (WARM_UP_S + measured_s)))
                measured = measure_worker(overrides, measured_s, topic.records, folder / "worker.log")
            found[name].append(measured)
            console.print(f"{model}, round {number + 1}: {name} {measured.records_per_s:,.0f} records/s")
    return found


Spread = dict[str, float]
"""Least, median and greatest over the rounds."""


def spread(values: Iterable[float]) -> Spread:
    ordered = sorted(values)
    figures = {"min": ordered[0], "median": median(ordered), "max": ordered[-1]}
    return {name: round(figure, 4) for name, figure in figures.items()}


def summary(found: dict[str, list[Measurement]]) -> dict[str, dict[str, Spread]]:
    figures = {
        field: {name: spread(getattr(m, field) for m in measured) for name, measured in found.items()}
        for field in Measurement._fields
    }
    ratios = {
        f"{name}/{other}": spread(
            a.records_per_s / b.records_per_s for a, b in zip(found[name], found[other], strict=True)
        )
        for name, other in RATIOS
    }
    return figures | {"ratios": ratios}


def table(summaries: dict[str, dict[str, dict[str, Spread]]]) -> Table:
    def show(figures: Spread | None, form: str) -> str:
        if figures is None:
            return ""
        low, middle, high = (format(figures[key], form) for key in ("min", "median", "max"))
        return f"{middle} ({low}-{high})"

    drawn = Table(
        "model",
        "contender",
        caption="Median (least-greatest) of the rounds. Elsewhere: cores that other processes kept busy, at most; "
        "beside a worker that is the broker.",
    )
    for column in ("records/s", "to bare", "to memory", "CPU s/1000", "elsewhere", "peak MiB"):
        drawn.add_column(column, justify="right")
    for model, figures in summaries.items():
        for name in CONTENDERS:
            drawn.add_row(
                model,
                name,
                show(figures["records_per_s"][name], ",.0f"),
                show(figures["ratios"].get(f"{name}/bare_torch"), ".2f"),
                show(figures["ratios"].get(f"{name}/in_memory"), ".2f"),
                f"{figures['cpu_s_per_1000_records'][name]['median']:.3f}",
                f"{figures['cores_elsewhere'][name]['max']:.2f}",
                f"{figures['peak_memory_bytes'][name]['max'] / MIB:,.0f}",
                end_section=name == CONTENDERS[-1],
            )
    return drawn


def main(
    model: Annotated[
        list[str] | None, typer.Option(help="Model to measure; may be repeated. All when left out.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Data set, in a layout that `stream-learner feed` reads.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each contender has its turn.")] = 3,
) -> None:
    """Measure the throughput of the worker on a real Kafka, of the same learner in memory, and of bare torch."""
    dataset = mixed_sample(open_dataset(data)) if data else made_up()
    examples = list(dataset)
    image_bytes = sum(len(example.image) for example in examples) / len(examples)
    about = {
        "benchmark": "throughput",
        "data": f"{dataset.name}: {len(dataset)} of {image_bytes:.0f} bytes, {dataset.width} x {dataset.height} pixels",
        "rounds": rounds,
        "cores": os.cpu_count(),
        "torch": version("torch"),
        "kafka_python": version("kafka-python"),
    }
    console.print(", ".join(f"{key}: {value}" for key, value in about.items()))
    with TemporaryDirectory() as name, Broker(Path(name) / "kafka") as broker:
        folder = Path(name)
        common = [
            f"kafka.bootstrap_servers={broker.bootstrap_servers}",
            f"input.topics=['{TOPIC}']",
            f"model.height={dataset.height}",
            f"model.width={dataset.width}",
            f"model.channels={dataset.channels}",
            f"checkpoint.store={folder / 'objects'}",
            f"checkpoint.max_unsaved_records={NEVER}",
            f"release.every_records={NEVER}",
            "learning.optimizer=adam",
            "learning.average_decay=0",
            "learning.augment=[]",
        ]
        topics.create(config.load(None, [*common, "run.id=input"]), input_partitions=1)
        topic = Input(broker, dataset)
        summaries = {name: summary(measure(common, name, rounds, examples, topic, folder)) for name in model or MODELS}
    console.print(table(summaries))
    busy = max(figures["cores_elsewhere"][name]["max"] for figures in summaries.values() for name in CONTENDERS[:2])
    if busy > QUIET_CORES:
        console.print(f"Other programs kept up to {busy:.1f} cores busy: the figures are unreliable.", style="yellow")
    print(json.dumps(about | {"models": summaries}))


if __name__ == "__main__":
    typer.run(main)
