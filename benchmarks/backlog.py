"""The cost of the reading order: a backlog, compared with the same records learned live.

    python benchmarks/backlog.py [--data DIR] [--seeds N]

The records are keyed by class, so that each partition holds whole classes. `backlog`: all records are in the topic
before the worker starts. `live`: the worker learns each portion as it arrives. Both learn the same records with the
same settings and a small memory. The result is the accuracy of the last release's network on test images.
"""

import json
import time
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import torch
import typer
from confluent_kafka import Producer

from benchmarks.data import Data, decoded, open_data
from stream_learner import config
from stream_learner import networks as models
from stream_learner.checkpoints.store import Store
from stream_learner.contract import tensors
from stream_learner.follow.status import read_status
from stream_learner.learning import evaluation
from stream_learner.local.broker import Broker, free_port
from stream_learner.local.processes import Child
from stream_learner.local.scrape import scrape
from stream_learner.networks.tensors import as_tensors, load_parameters
from stream_learner.streams import topics

RECORDS = 6_000
PARTITIONS = 10
MEMORY = 500
BATCH = 32
PORTION = 64  # records in the topic before the next portion is sent, in `live`
NEVER = 10**9  # seconds: batches close full
LOOK_EVERY_S = 0.05


def accuracy(data: Data, broker: Broker, run: str, records: np.ndarray, live: bool, own: list[str]) -> float:
    """Let a worker learn the records, given as indices of training images, and test its last release."""
    with TemporaryDirectory() as name:
        topic, port = f"{run}.images", free_port()
        overrides = [
            f"run.id={run}",
            f"input.topics=['{topic}']",
            f"kafka.bootstrap_servers={broker.bootstrap_servers}",
            f"checkpoint.store={name}/objects",
            f"monitoring.port={port}",
            f"model.height={data.height}",
            f"model.width={data.width}",
            f"model.channels={data.channels}",
            f"memory.max_items={MEMORY}",
            "split.validation=0",
            "split.test=0",
            f"batch.size={BATCH}",
            f"batch.linger_s={NEVER}",
            f"release.every_records={len(records) // BATCH * BATCH}",
            *own,
        ]
        settings = config.load(None, overrides)
        topics.create(settings, input_partitions=PARTITIONS)
        producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "linger.ms": 1})

        def send(portion: np.ndarray) -> None:
            for index in portion.tolist():
                label = data.labels[data.train.targets[index]]
                headers: list[tuple[str, str | bytes | None]] = [("label", label.encode()), ("id", str(index).encode())]
                partition = data.train.targets[index] % PARTITIONS
                producer.produce(topic, data.train.images[index], label.encode(), int(partition), headers=headers)
                producer.poll(0)
            producer.flush()

        portions = np.array_split(records, max(1, len(records) // PORTION))
        if not live:
            for portion in portions:
                send(portion)
                time.sleep(0.002)  # otherwise all portions would have the same millisecond
        with Child(["run", *(word for o in overrides for word in ("--set", o))], Path(name) / "worker.log") as worker:
            learned = sent = 0
            while learned < len(records) // BATCH * BATCH:
                code = worker.ended()
                if code is not None:
                    raise worker.failure("worker", code)
                figures = scrape(port)
                learned = int(figures.total("records_in_total")) if figures else 0
                if live and figures and sent - learned < BATCH and portions:
                    portion = portions.pop(0)
                    send(portion)
                    sent += len(portion)
                else:
                    time.sleep(LOOK_EVERY_S)
        manifest = read_status(settings).manifest
        assert manifest is not None
        assert manifest.release is not None
        model = models.build(manifest.release.model, own=settings.model.name)
        load_parameters(
            model, as_tensors(tensors.decode(Store(settings.checkpoint.store).fetch(manifest.release.object)))
        )
    classes = np.array([data.labels.index(str(label)) for label in manifest.release.labels])
    asked = decoded(data.test.images, settings.model)
    return float((classes[evaluation.predict(model.eval(), asked, torch.device("cpu"))] == data.test.targets).mean())


def main(
    data: Annotated[
        Path | None, typer.Option(help="Data set, in a layout that `stream-learner feed` reads; digits when left out.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Orders of the records.")] = 3,
    own: Annotated[list[str] | None, typer.Option("--set", help="A setting of the worker; may be repeated.")] = None,
) -> None:
    """Compare the accuracy after learning a backlog with the accuracy after learning live."""
    opened = open_data(data)
    scores: dict[str, list[float]] = defaultdict(list)
    with TemporaryDirectory() as name, Broker(Path(name) / "kafka") as broker:
        for seed in range(seeds):
            records = np.random.default_rng(seed).permutation(len(opened.train.targets))[:RECORDS]
            for kind in ("backlog", "live"):
                scores[kind].append(accuracy(opened, broker, f"{kind}{seed}", records, kind == "live", own or []))
                print(f"{opened.name}, seed {seed}, {kind}: {scores[kind][-1]:.1%}", flush=True)
    figures = {
        kind: {"mean": round(mean(found), 4), "sd": round(stdev(found), 4) if seeds > 1 else None}
        for kind, found in scores.items()
    }
    print(json.dumps({"benchmark": "backlog", "data": opened.name, "accuracy": figures}))


if __name__ == "__main__":
    typer.run(main)
