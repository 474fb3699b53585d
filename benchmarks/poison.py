"""The effect of a producer with wrong labels on the released model, with and without the gate.

    python benchmarks/poison.py [--data DIR] [--seed N] [--set section.key=value ...]

Two producers with one topic each take turns, and each sends half of the images. The labels of the first are right. The
second flips some to the next class: none in the first half of the stream, 10 % in the third quarter, 60 % in the last.
The hash assigns its records to every split, unless `split.held_out_from` names only the honest topic. A fifth of the
images is in neither topic. It is the clean test set, which the worker never sees.

The stream is learned in memory, once for each guard. For each stage, the table shows the number of released models and
two accuracies on the clean test set: that of the model in use at the end of the stage, and that of the worst model
released since the first flip. The default data are scikit-learn's handwritten digits. The last line is one JSON object
with every decision.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from stream_learner import config
from stream_learner import networks as models
from stream_learner.config import Settings
from stream_learner.formats.decoder import Decoder
from stream_learner.formats.record import Gap, Record, Sample
from stream_learner.learning.evaluation import predict
from stream_learner.learning.learner import Learner
from stream_learner.learning.outcome import Candidate
from stream_learner.learning.parallel import Parallel
from stream_learner.learning.process import set_up_torch
from stream_learner.local.datasets import Dataset, open_dataset
from stream_learner.run.batches import OpenBatch, batches
from stream_learner.run.driver import Driver
from stream_learner.run.progress import Progress

HONEST, POISONED = TOPICS = ("honest", "poisoned")
FLIPPED = (0.0, 0.0, 0.1, 0.6)  # share of the poisoned producer's labels, in each quarter of the stream
RULES = {
    "no gate": ["release.max_drop=1"],
    "max_drop": ["release.rule=max_drop"],
    "not_worse": ["release.rule=not_worse"],
    "better": ["release.rule=better"],
}
TRUSTED = f"split.held_out_from=['{HONEST}']"
DIGITS_OVERRIDES = [  # there are few images: learn as much as possible from each, and hold out enough to compare
    "model.name=mlp",
    "batch.size=8",
    "learning.steps_per_batch=5",
    "learning.learning_rate=0.005",
    "learning.augment=['crop']",
    "learning.average_decay=0.9",
    "split.validation=0.3",
    "split.test=0",
    "release.min_held_out=50",
]
GUARDS = RULES | {f"{name}, trusted": [*rule, TRUSTED] for name, rule in RULES.items()}
MAX_TEST = 2_000
POLLED = 500
DECISIONS = 40

console = Console(highlight=False, width=120)


@dataclass(frozen=True)
class Outcome:
    """A decision of the gate after a number of records.

    `flipped` is the share of labels that the poisoned producer flips at that point. `validation` is the candidate's
    mean recall on the held-out samples, `accuracy` its accuracy on the clean test set; both are 0..1.
    """

    records: int
    flipped: float
    released: bool
    validation: float | None
    accuracy: float


class Stream:
    """The records of both topics in turn. It is the source, and after the last record also the stop event."""

    def __init__(self, dataset: Dataset, order: np.ndarray, rng: np.random.Generator):
        self.flipped = np.repeat(FLIPPED, -(-len(order) // len(FLIPPED)))[: len(order)]
        flips = (np.arange(len(order)) % 2 == TOPICS.index(POISONED)) & (rng.random(len(order)) < self.flipped)
        self._targets = (np.array(dataset.targets)[order] + flips) % len(dataset.labels)
        self._dataset, self._order = dataset, order
        self._next = 0
        self._ended = False

    def poll(self, timeout_s: float) -> list[Record | Gap]:
        del timeout_s
        numbers = range(self._next, min(self._next + POLLED, len(self._order)))
        self._next, self._ended = numbers.stop, not numbers
        return [record(self._dataset, self._order[i], self._targets[i], TOPICS[i % 2], offset=i // 2) for i in numbers]

    def read_ahead(self) -> None:
        pass

    def took(self, seconds: float, records: int = 1) -> None:
        pass

    def is_set(self) -> bool:
        return self._ended


def record(dataset: Dataset, index: int, target: int, topic: str, offset: int) -> Record:
    headers = [("label", dataset.labels[target].encode()), ("id", dataset.ids[index].encode())]
    return Record(topic, 0, offset, 0, None, dataset.read(index), headers)


def learn(settings: Settings, dataset: Dataset, seed: int) -> Iterator[Outcome]:
    """Learn the stream, mixed and poisoned by `seed`, and yield every decision. `settings` read both `TOPICS`."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(dataset))
    apart = min(MAX_TEST, len(order) // 5)
    decode = Decoder.from_settings(settings)
    records = (record(dataset, index, dataset.targets[index], HONEST, 0) for index in order[:apart])
    clean = [sample for sample in map(decode, records) if isinstance(sample, Sample)]
    stream = Stream(dataset, order[apart:], rng)
    set_up_torch(settings)
    driver = Driver(Learner(settings), Progress({topic: {0: 0} for topic in TOPICS}))
    learner, positions = driver.learner, driver.progress.positions
    shard = OpenBatch(stream, decode, positions, settings.batch, stream, clock=lambda: 0.0)
    for closed in filter(None, batches([shard], Parallel(), settings.batch, stream, clock=lambda: 0.0)):
        driver.learn(*closed)
        if learner.release_due:
            decided = driver.decide()
            decision, candidate = decided.decision, decided.candidate
            driver.snapshot(decided)  # ends the interval
            yield Outcome(
                records=learner.records,
                flipped=float(stream.flipped[learner.records - 1]),
                released=decision.released,
                validation=decision.candidate,
                accuracy=accuracy(candidate, clean),
            )


def accuracy(candidate: Candidate, samples: list[Sample]) -> float:
    """Return the accuracy of the network as downstream builds it."""
    network = models.build(candidate.model)
    network.load_state_dict(candidate.parameters)
    predictions = predict(network, np.stack([sample.pixels_HWC for sample in samples]), torch.device("cpu"))
    hits = [candidate.labels[p] == sample.label for p, sample in zip(predictions, samples, strict=True)]
    return float(np.mean(hits))


def overrides_for(dataset: Dataset, seed: int) -> list[str]:
    """Return settings, as `section.key=value`, of a worker that learns the stream without a guard."""
    return [
        "run.id=poison",
        f"run.seed={seed}",
        f"input.topics=['{HONEST}', '{POISONED}']",
        f"model.height={dataset.height}",
        f"model.width={dataset.width}",
        f"model.channels={dataset.channels}",
        f"release.every_records={len(dataset) // DECISIONS}",
        *(DIGITS_OVERRIDES if dataset.is_digits else []),
    ]


def served(outcomes: list[Outcome], flipped: float) -> float:
    """Return the accuracy of the model that is in use downstream when the producer flips this share of labels."""
    return next(o.accuracy for o in reversed(outcomes) if o.released and o.flipped <= flipped)


def worst_release(outcomes: list[Outcome]) -> float | None:
    """Return the accuracy of the worst model released since the first flip, None if there is none."""
    return min((o.accuracy for o in outcomes if o.released and o.flipped), default=None)


def table(found: dict[str, list[Outcome]]) -> Table:
    drawn = Table("guard", "releases", caption="Accuracy on the clean test set, in percent.")
    stages = sorted(set(FLIPPED))
    for column in (*(f"after {flipped:.0%} flipped" for flipped in stages), "worst release"):
        drawn.add_column(column, justify="right")
    for name, outcomes in found.items():
        worst = worst_release(outcomes)
        releases = [sum(o.released for o in outcomes if o.flipped == flipped) for flipped in stages]
        figures = [f"{served(outcomes, flipped):.1%}" for flipped in stages]
        drawn.add_row(name, " + ".join(map(str, releases)), *figures, "" if worst is None else f"{worst:.1%}")
    return drawn


def main(
    data: Annotated[Path | None, typer.Option(help="Data set, in a layout that `stream-learner feed` reads.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the order, of the flips and of the first weights.")] = 0,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="A setting, as section.key=value.")] = None,
) -> None:
    """Measure the accuracy of released models while a producer sends wrong labels, with and without guards."""
    dataset = open_dataset(data)
    common = overrides_for(dataset, seed) + (overrides or [])
    found = {
        name: list(learn(config.load(None, [*common, *guard]), dataset, seed))
        for name, guard in track(GUARDS.items(), "Learning", console=console)
    }
    console.print(table(found))
    document = {
        "benchmark": "poison",
        "data": dataset.name,
        "seed": seed,
        "overrides": overrides or [],
        "guards": {name: [asdict(outcome) for outcome in outcomes] for name, outcomes in found.items()},
    }
    print(json.dumps(document))


if __name__ == "__main__":
    typer.run(main)
