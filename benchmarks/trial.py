"""One run of one contender, from its options to its scores."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
from rich.progress import Progress

from benchmarks import incremental, retraining, runs, streams, through_kafka
from benchmarks.data import Data, decoded
from benchmarks.exam import Exam
from benchmarks.runs import Run
from benchmarks.scenarios import SCENARIOS, corrupted
from stream_learner import config
from stream_learner import networks as models
from stream_learner.errors import DataError, UsageError
from stream_learner.learning.identity import identity, settings_digest
from stream_learner.learning.placement import place
from stream_learner.learning.strategies import strategy

DEFAULT = "default"
RETRAIN = "retrain"
# The other settings only affect input and output.
SECTIONS = {"batch", "model", "learning", "memory", "weights", "drift", "release"}
USED_BY_RETRAINING = {"model": True, "learning": {"augment", "device", "precision", "channels_last", "threads"}}


@dataclass(frozen=True)
class Trial:
    """Options of a run.

    `scenario` is a name from SCENARIOS. `strategy` is one from STRATEGIES, `default` for the default settings, or
    `retrain`. `budget` is the number of steps with each batch of new images, each step with as many replayed ones.
    `overrides` are settings as `section.key=value`. `kafka` runs through a broker and the worker.
    """

    scenario: str
    strategy: str
    seed: int
    budget: int
    model: str
    batch: int
    memory_share: float | None
    """Of the training images; None for 1,000 images."""
    validation: bool
    overrides: tuple[str, ...]
    kafka: bool = False

    def once(self, folder: Path, data: Data, progress: Progress) -> Run:
        """Return the scored run, from its file in `folder` if it was made before. Raises UsageError, DataError."""
        train, validation = streams.split(data.train.targets, self.seed)
        try:
            stream = SCENARIOS[self.scenario](data.train.targets, train, self.seed).whole_batches(self.batch)
        except ValueError as error:  # too few classes
            advice = "leave --classes out" if self.scenario == "class_tenths" else "`shuffled` takes any number"
            raise UsageError(f"{error}; {advice}") from None
        if not len(stream):
            raise DataError(f"the {len(train)} training images of {data.name} do not fill a batch of {self.batch}")
        overrides = self._overrides(data, len(stream))
        settings = config.load(None, overrides)
        part = data.train.at(validation) if self.validation else data.test
        asked = {
            "benchmark": self.scenario,
            "data": data.name,
            "digest": data.digest,
            "model": self.model,
            "part": "validation" if self.validation else "test",
            "through": "kafka" if self.kafka else "memory",
            "strategy": self.strategy,
            "overrides": sorted(self.overrides),
            "budget": self.budget,
            "seed": self.seed,
            "images": len(stream),
            "examined": len(part.images),
            "settings": settings.model_dump(
                mode="json", include=USED_BY_RETRAINING if self.strategy == RETRAIN else SECTIONS
            ),
        }

        words = (asked[word] for word in ("benchmark", "data", "model", "part", "through", "strategy", "budget"))
        name = f"{'-'.join(map(str, words))}x-seed{self.seed}"
        increments = folder / runs.key(name, asked)  # of retraining, which takes hours

        def increment(number: int, train: Callable[[], Run]) -> Run:
            return runs.once(increments, name, asked | {"increment": number}, train)

        def run() -> Run:
            total = retraining.EPOCHS * sum(stream.ends) if self.strategy == RETRAIN else len(stream)
            bar = progress.add_task(f"{self.scenario} {self.strategy} x{self.budget} seed {self.seed}", total=total)

            def on_progress(images: int) -> None:
                progress.update(bar, completed=images)

            pixels_NHWC = decoded(part.images, settings.model)
            exam = Exam(pixels_NHWC, part.targets)
            if self.strategy == RETRAIN:
                held_out = data.train.at(validation)
                valid = Exam(decoded(held_out.images, settings.model), held_out.targets)
                say = partial(progress.console.print, highlight=False)
                outcome = retraining.retrain(settings, stream, data, exam, valid, increment, say, on_progress)
            elif self.kafka:
                outcome = through_kafka.learn(overrides, stream, data, exam, on_progress)
            else:
                later = Exam(corrupted(pixels_NHWC, seed=0), part.targets) if stream.changes else exam
                outcome = incremental.learn(settings, stream, data, (exam, later), on_progress)
            progress.remove_task(bar)
            placement = place(settings.learning, models.factory(settings.model.name))
            arithmetic = placement.arithmetic(settings_digest(settings, identity(settings)))
            return outcome.scored() | {"arithmetic": msgspec.structs.asdict(arithmetic)}

        made = runs.once(folder, name, asked, run)
        shutil.rmtree(increments, ignore_errors=True)
        return made

    def _overrides(self, data: Data, images: int) -> list[str]:
        overrides = [
            "run.id=benchmark",
            f"run.seed={self.seed}",
            f"input.topics=['{incremental.TOPIC}']",
            f"model.name={self.model}",
            f"model.height={data.height}",
            f"model.width={data.width}",
            f"model.channels={data.channels}",
            f"batch.size={self.batch}",
            f"memory.max_items={round(self.memory_share * images) if self.memory_share else 1_000}",
            f"memory.replay_size={self.batch}",
            *([] if self.strategy in (DEFAULT, RETRAIN) else [f"learning.strategy={self.strategy}"]),
            *self.overrides,
        ]
        replays = strategy(config.load(None, overrides).learning.strategy).replays
        # A strategy without replay makes twice the steps of half the size, which gives equal views.
        steps = f"learning.steps_per_batch={self.budget if replays else 2 * self.budget}"
        # Retraining and the runs compared with it (those with a share) use the same augmentation.
        alike = ["learning.augment=['crop', 'flip']"] if self.memory_share else []
        augment = config.load(None, [steps, *alike, *overrides]).learning.augment
        if not data.mirrored:
            alike = [f"learning.augment={[name for name in augment if name != 'flip']}"]
        return [steps, *alike, *overrides]
