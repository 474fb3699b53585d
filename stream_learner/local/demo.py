"""The main job on a laptop: a real Kafka, a feeder and a worker, each a process, watched until the feed is learned."""

import json
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Protocol

from stream_learner import config
from stream_learner.config import Settings
from stream_learner.errors import DataError, UsageError
from stream_learner.local.broker import Broker
from stream_learner.local.datasets import Dataset, open_dataset
from stream_learner.local.processes import Child, Supervised, free_port
from stream_learner.local.scrape import scrape
from stream_learner.local.view import Summary, View, near
from stream_learner.records.manifest import Manifest
from stream_learner.records.record import Split
from stream_learner.records.spans import Positions
from stream_learner.records.window import decode_window
from stream_learner.streams import offsets, topics
from stream_learner.streams.journal import read_committed
from stream_learner.streams.status import read_status
from stream_learner.streams.topics import Names

FOLDER = Path(".stream-learner") / "demo"
# A small data set is fed slowly enough to be watched.
DATA = "data.txt"
WATCH_S = 20.0
WATCHABLE = 5_000
LOOK_EVERY_S = 0.25


class Live(Protocol):
    """rich.live.Live, or what stands in for it."""

    def refresh(self) -> None: ...


def run_demo(
    data: Path | None,
    resume: bool,
    seed: int,
    say: Callable[[str], None],
    show: Callable[[View], AbstractContextManager[Live]],
) -> Summary:
    """Runs the demo to its end and returns what it did.

    `say` gets a line for each thing that happens before and after the view; `show(view)` draws the view meanwhile.
    Raises subclasses of StreamLearnerError; whatever happens, every process that was started is stopped.
    """
    began = time.monotonic()
    folder = _last_run() if resume else None
    if folder and data is None:
        data = _fed_before(folder)
    dataset = open_dataset(data)
    folder = folder or _new_run(dataset, data, seed)
    say(f"data: {dataset.name}, {len(dataset):,} images of {len(dataset.labels)} classes{dataset.beside}")
    say("starting Apache Kafka (the first time, 44 MB of jars are downloaded)")
    with Broker(folder / "kafka") as broker:
        overrides = [f"kafka.bootstrap_servers={broker.bootstrap_servers}", f"monitoring.port={free_port()}"]
        settings = config.load(folder / "worker.toml", overrides)
        topics.create(settings, input_partitions=1)
        _remember(folder)
        before = read_status(settings).manifest
        say(f"Kafka is at {broker.bootstrap_servers}; the run's files are in {near(str(folder))}")
        try:
            restarts = _learn(dataset, data, seed, settings, folder, overrides, show)
        except SystemExit:
            say("stopped; the worker has saved. `make demo RESUME=1` goes on with this run")
            raise
        killed = f"the worker was started again {restarts} x, and nothing is lost; " if restarts else ""
        say(f"everything fed is learned; {killed}the worker has saved and stopped")
        return _summary(settings, folder, before, began)


def _learn(
    dataset: Dataset,
    data: Path | None,
    seed: int,
    settings: Settings,
    folder: Path,
    overrides: list[str],
    show: Callable[[View], AbstractContextManager[Live]],
) -> int:
    """Feeds the data set, learns it, and stops the worker cleanly. How often the worker had to be started again."""
    common = [str(folder / "worker.toml")] + [word for override in overrides for word in ("--set", override)]
    feed = ["feed", *common, "--seed", str(seed)] + (["--data", str(data)] if data else [])
    if len(dataset) < WATCHABLE:
        feed += ["--rate", str(len(dataset) / WATCH_S)]
    _, start = offsets.bounds(settings.kafka, settings.input.topics)
    view = View(f"stream_learner demo, run {settings.run.id}", to_feed=len(dataset))
    with (
        Supervised(["run", *common], folder / "worker.log") as worker,
        Child(feed, folder / "feed.log") as feeder,
        show(view) as live,
    ):
        while not _all_learned(view, settings, start, feeder):
            worker.tend()
            view.worker(worker.pid, worker.restarts)
            view.update(scrape(settings.monitoring.port), time.monotonic())
            live.refresh()
            time.sleep(LOOK_EVERY_S)
        view.stopping()
        live.refresh()
        code = worker.stop()
        if code:
            raise worker.failure("worker", code)
        return worker.restarts


def _all_learned(view: View, settings: Settings, start: Positions, feeder: Child) -> bool:
    """Whether the feeder is done and everything it fed is learned."""
    fed = feeder.ended()
    if fed:
        raise feeder.failure("feeder", fed)
    _, end = offsets.bounds(settings.kafka, settings.input.topics)
    learned = view.figures.positions() if view.figures else {}
    places = [(topic, partition) for topic, partitions in start.items() for partition in partitions]
    view.fed = sum(end[t][p] - start[t][p] for t, p in places)
    read = sum(max(0, learned.get((t, p), 0) - start[t][p]) for t, p in places)
    view.read = max(view.read, read)
    return fed == 0 and all(learned.get((t, p), 0) >= end[t][p] for t, p in places)


def _summary(settings: Settings, folder: Path, before: Manifest | None, began: float) -> Summary:
    """What the topics say was done since the manifest `before`."""
    after = read_status(settings).manifest
    if after is None or after.release is None:
        raise DataError("the data set is too small for a release; take more images")
    records = read_committed(settings, Names.of(settings).metrics)
    all_windows = [decode_window(record.value or b"") for record in records]
    windows = [w for w in all_windows if before is None or w.order > before.order]
    earlier = before.release.test.accuracy if before and before.release else None
    return Summary(
        run_id=settings.run.id,
        records_read=sum(w.records for w in windows),
        learned=sum(w.learned for w in windows),
        validation=sum(w.splits.get(Split.VALIDATION, 0) for w in windows),
        test=sum(w.splits.get(Split.TEST, 0) for w in windows),
        rejected=sum(sum(w.rejected.values()) for w in windows),
        test_accuracy_before=earlier or 0.0,
        test_accuracy_after=after.release.test.accuracy or 0.0,
        release=after.url(after.release.object),
        topics=[*settings.input.topics, *(plan.name for plan in topics.output_plan(settings))],
        folder=str(folder),
        seconds=round(time.monotonic() - began, 1),
    )


def _new_run(dataset: Dataset, data: Path | None, seed: int) -> Path:
    run_id = f"demo-{datetime.now():%Y%m%d-%H%M%S}"
    folder = (FOLDER / run_id).resolve()
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"the demo cannot make {folder}: {error.strerror}; run it in a folder of yours") from None
    (folder / "worker.toml").write_text(_settings(dataset, run_id, folder, seed))
    (folder / DATA).write_bytes(os.fsencode(data.resolve()) if data else b"")
    return folder


def _fed_before(folder: Path) -> Path | None:
    """The data set that a run was fed with, None for the digits."""
    path = (folder / DATA).read_bytes()
    return Path(os.fsdecode(path)) if path else None


def _remember(folder: Path) -> None:
    """Makes this the run to resume."""
    latest = FOLDER / "latest"
    latest.unlink(missing_ok=True)
    latest.symlink_to(folder.name)


def _last_run() -> Path:
    latest = FOLDER / "latest"
    if not (latest / "worker.toml").is_file():
        raise UsageError(f"there is no demo to resume in {FOLDER}; run it once without RESUME=1")
    return latest.resolve()


def _settings(dataset: Dataset, run_id: str, folder: Path, seed: int) -> str:
    digits = dataset.is_digits
    return f"""\
# Written by `stream-learner demo`; kafka.bootstrap_servers comes from its broker.
[run]
id = "{run_id}"
seed = {seed}
# There is one worker: after a kill it need not wait until the broker gives up its former self.
on_conflict = "take_over"

[input]
topics = ["{run_id}.images"]

[split]
validation = {0.1 if digits else 0.05}
test = {0.2 if digits else 0.05}

[model]
name = "cnn"
height = {dataset.height}
width = {dataset.width}
channels = {dataset.channels}

[learning]
augment = {'["crop"]' if digits else '["crop", "flip"]'}
steps_per_batch = {3 if digits else 1}

[release]
every_records = {max(100, len(dataset) // 12)}
min_held_out = 50

[checkpoint]
store = {json.dumps(str(folder / "objects"))}
every_s = 2
"""
