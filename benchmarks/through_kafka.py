"""The same stream through a real Kafka and the real worker. The released model is measured."""

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.data import Data
from benchmarks.exam import Exam
from benchmarks.incremental import TOPIC
from benchmarks.outcome import Moment, Outcome
from benchmarks.scenarios import Stream
from stream_learner import config
from stream_learner import networks as models
from stream_learner.checkpoints.store import Store
from stream_learner.contract import tensors
from stream_learner.follow.status import read_status
from stream_learner.learning.strategies import strategy
from stream_learner.local.broker import Broker, free_port
from stream_learner.local.datasets import Dataset
from stream_learner.local.feeder import feed
from stream_learner.local.processes import Child
from stream_learner.local.scrape import scrape
from stream_learner.networks.tensors import as_tensors, load_parameters
from stream_learner.streams import topics

LOOK_EVERY_S = 0.5
NEVER = 10**9


def learn(overrides: list[str], stream: Stream, data: Data, exam: Exam, on_progress: Callable[[int], None]) -> Outcome:
    """Feed the stream, run `stream-learner run` until it has released all of it, and examine the release.

    The outcome has this one moment. Views are those of full steps, although the first step has nothing to replay.
    Raises ChildError when the worker ends.
    """
    with TemporaryDirectory() as name, Broker(Path(name) / "kafka") as broker:
        folder = Path(name)
        overrides = [
            *overrides,
            f"kafka.bootstrap_servers={broker.bootstrap_servers}",
            f"checkpoint.store={folder / 'objects'}",
            f"monitoring.port={free_port()}",
            "split.validation=0",
            "split.test=0",
            f"batch.linger_s={NEVER}",  # batches close full, as in memory
            f"release.every_records={len(stream)}",
        ]
        settings = config.load(None, overrides)
        topics.create(settings, input_partitions=1)
        feed(_as_dataset(stream, data), settings.kafka, TOPIC, order=_as_it_is)
        began = time.monotonic()
        with Child(["run", *(word for o in overrides for word in ("--set", o))], folder / "worker.log") as worker:
            records = steps = 0
            while records < len(stream):
                time.sleep(LOOK_EVERY_S)
                code = worker.ended()
                if code is not None:
                    raise worker.failure("worker", code)
                figures = scrape(settings.monitoring.port)
                if figures:
                    records, steps = int(figures.total("records_in_total")), int(figures.total("steps_total"))
                    on_progress(records)
            seconds = time.monotonic() - began
        manifest = read_status(settings).manifest
        assert manifest is not None
        assert manifest.release is not None  # a worker that is stopped cleanly publishes its last decision
        model = models.build(manifest.release.model, own=settings.model.name)
        load_parameters(
            model, as_tensors(tensors.decode(Store(settings.checkpoint.store).fetch(manifest.release.object)))
        )
    classes = [data.labels.index(str(label)) for label in manifest.release.labels]
    point = exam.take(model.eval(), torch.device("cpu"), classes)
    learned_by = strategy(settings.learning.strategy)
    views = steps * (settings.batch.size + (settings.replay_size if learned_by.replays else 0))
    return Outcome(
        [Moment(len(stream), views, seconds, point)],
        steps=steps,
        views=views,
        teacher_views=views if learned_by.distils else 0,
        evaluation_views=point.asked,
        seconds=seconds,
    )


def _as_dataset(stream: Stream, data: Data) -> Dataset:
    indices = stream.indices.tolist()
    return Dataset(
        data.name,
        data.labels,
        True,
        stream.labels.tolist(),
        [str(index) for index in indices],
        data.height,
        data.width,
        data.channels,
        lambda offset: data.train.images[indices[offset]],
    )


def _as_it_is(targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    del rng
    return np.arange(len(targets))
