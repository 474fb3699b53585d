"""The demo: a real Kafka, a feeder and a worker on a laptop, each in a process, until all records are learned."""

import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Protocol

from stream_learner import config
from stream_learner.config import Settings
from stream_learner.contract.manifest import Manifest
from stream_learner.contract.spans import Positions
from stream_learner.contract.vocabulary import Split
from stream_learner.errors import DataError, ExitCode, KafkaUnavailableError, UsageError
from stream_learner.follow.status import read_status
from stream_learner.local.asking import Asked, ask, command, held_out
from stream_learner.local.broker import HOST, Broker, free_port, is_running
from stream_learner.local.counts import Order, Totals, committed, rejected
from stream_learner.local.datasets import Dataset, open_dataset
from stream_learner.local.jars import cache_folder
from stream_learner.local.processes import Child, Supervised
from stream_learner.local.scrape import scrape
from stream_learner.local.view import STOPPED, Summary, View, near
from stream_learner.streams import offsets, topics

FOLDER = Path(".stream-learner") / "demo"
RUN = re.compile(r"demo-\d{8}-\d{6}")
KEPT_RUNS = 3
DATA = "data.txt"
# The image about which the server was asked.
IMAGE = "image"
# A small data set is fed slowly, so that a person can watch.
WATCH_S = 20.0
WATCHABLE = 5_000
LOOK_EVERY_S = 0.25
LOOK_TIMEOUT_S = 2.0
WAITS = "waits for Kafka"


class Live(Protocol):
    """The only method of rich.live.Live that the demo uses. `view.Lines` has the same method."""

    def refresh(self) -> None: ...


def run_demo(
    data: Path | None,
    resume: bool,
    seed: int,
    say: Callable[[str], None],
    show: Callable[[View], AbstractContextManager[Live]],
    finish: Callable[[Summary], None],
    keep_serving: bool = False,
) -> None:
    """Run the demo to its end.

    `say` prints a line for each event before and after the view. `show(view)` draws the view. `finish` gets the
    summary. With `keep_serving`, the last release is then served until a signal handler raises SystemExit. Raises
    subclasses of StreamLearnerError, and SystemExit if a signal arrives earlier. All started processes are stopped in
    every case.
    """
    began = time.monotonic()
    folder = _last_run() if resume else None
    if folder and data is None:
        data = _fed_before(folder)
    dataset = open_dataset(data, "all")
    folder = folder or _new_run(dataset, data, seed)
    say(f"data: {dataset.name}, {len(dataset):,} images of {len(dataset.labels)} classes{dataset.beside}")
    for split, images in Counter(dataset.held_out.values()).items():
        say(f"{images:,} of these images are its {split} part: fed with `split: {split}`, never learned")
    say(f"starting Apache Kafka{'' if cache_folder().is_dir() else ' (the first time, 44 MB of jars are downloaded)'}")
    with Broker(folder / "kafka") as broker:
        overrides = [f"kafka.bootstrap_servers={broker.bootstrap_servers}", f"monitoring.port={free_port()}"]
        settings = config.load(folder / "worker.toml", overrides)
        topics.create(settings, input_partitions=1)
        _remember(folder)
        if removed := _remove_old_runs():
            say(f"removed {removed} older demo{'s' if removed > 1 else ''}; the last {KEPT_RUNS} are kept")
        say(f"Kafka is at {broker.bootstrap_servers}; the run's files are in {near(str(folder))}")
        before = read_status(settings).manifest
        common = [str(folder / "worker.toml")] + [word for override in overrides for word in ("--set", override)]
        feed = ["feed", *common, "--split", "all", "--seed", str(seed)] + (["--data", str(data)] if data else [])
        if len(dataset) < WATCHABLE:
            feed += ["--rate", str(len(dataset) / WATCH_S)]
        worker = Supervised(["run", *common], folder / "worker.log")
        port = free_port()
        server = Child(["serve", *common, "--set", f"serve.port={port}"], folder / "serve.log")
        view = View(f"stream_learner demo, run {settings.run.id}", len(dataset), _held_out(dataset, settings))
        try:
            _learn(settings, _order(before), broker, worker, Child(feed, folder / "feed.log"), view, show)
            again = (
                f"the worker was started again {worker.restarts} x, and nothing is lost; " if worker.restarts else ""
            )
            say(f"all fed images are learned; {again}the worker has saved and stopped")
            after = _released(settings)
            with server:
                url = f"http://{HOST}:{port}"
                example, asked = ask(server, url, settings.run.id, held_out(dataset, settings.split))
                (folder / IMAGE).write_bytes(example.image)
                finish(_summary(settings, folder, before, after, began, asked))
                if keep_serving:
                    say(f"serving at {url} until Ctrl-C. To ask about an image, run this in another terminal:")
                    say(command(url, settings.run.id, near(str(folder / IMAGE))))
                    _serve(server)
        except SystemExit:
            say(f"stopped; nothing is lost. `{_resume_command()}` continues this run")
            raise


def _serve(server: Child) -> None:
    """Wait until a signal handler raises SystemExit. Raises ChildError if the server ends earlier."""
    try:
        while (code := server.ended()) is None:
            time.sleep(LOOK_EVERY_S)
    except SystemExit:
        return
    raise server.failure("server", code)


def _learn(
    settings: Settings,
    since: Order,
    broker: Broker,
    worker: Supervised,
    feeder: Child,
    view: View,
    show: Callable[[View], AbstractContextManager[Live]],
) -> None:
    """Feed the data set, learn it, and stop the worker cleanly. `since` is the last checkpoint before the start.

    Raises ChildError, and KafkaUnavailableError when Kafka does not start again.
    """
    _, start = offsets.bounds(settings.kafka, settings.input.topics)
    kafka = settings.kafka.model_copy(update={"request_timeout_s": LOOK_TIMEOUT_S})
    impatient = settings.model_copy(update={"kafka": kafka})
    totals = Totals(impatient, since)
    stopped = False
    with feeder, worker, show(view) as live:
        try:
            while not stopped:
                if broker.ended():
                    view.state = WAITS
                    live.refresh()
                    broker.start()
                worker.tend()
                try:
                    all_learned = _look(impatient, start, worker, feeder, totals, view)
                except KafkaUnavailableError:
                    view.state, all_learned = WAITS, False
                live.refresh()
                if all_learned:
                    view.state = "saves and stops"
                    live.refresh()
                    stopped = worker.stop() == ExitCode.OK  # otherwise the worker died before it saved
                    view.state = STOPPED if stopped else view.state
                else:
                    time.sleep(LOOK_EVERY_S)
        except SystemExit:
            view.state, view.interrupted = "saves and stops", True
            live.refresh()
            raise


def _look(settings: Settings, start: Positions, worker: Supervised, feeder: Child, totals: Totals, view: View) -> bool:
    """Update the view. Return whether the feeder is done and all its records are learned."""
    fed = feeder.ended()
    if fed:
        raise feeder.failure("feeder", fed)
    figures = scrape(settings.monitoring.port)
    _, end = offsets.bounds(settings.kafka, settings.input.topics)
    places = [(topic, partition) for topic, partitions in start.items() for partition in partitions]
    view.fed = sum(end[t][p] - start[t][p] for t, p in places)
    view.worker(worker.pid, worker.restarts, figures.phase() if figures else None, time.monotonic())
    learned = figures.positions() if figures else {}
    if figures and learned:  # the worker has recovered
        read = sum(max(0, learned.get((t, p), 0) - start[t][p]) for t, p in places)
        view.update(figures, totals.update(worker.pid, figures), read)
    return fed == 0 and all(learned.get((t, p), 0) >= end[t][p] for t, p in places)


def _order(manifest: Manifest | None) -> Order:
    """Return the epoch and sequence of a manifest, or (1, 0) if there is no manifest."""
    return manifest.order if manifest else (1, 0)


def _held_out(dataset: Dataset, settings: Settings) -> dict[Split, str]:
    """Describe where the samples of each held-out set come from."""
    shares = {Split.VALIDATION: settings.split.validation, Split.TEST: settings.split.test}
    own = set(dataset.held_out.values())
    return {s: f"the data's {s} part" if s in own else f"{share:.0%} of the fed images" for s, share in shares.items()}


def _resume_command() -> str:
    return "make demo RESUME=1" if "MAKELEVEL" in os.environ else "stream-learner demo --resume"


def _released(settings: Settings) -> Manifest:
    """Return the newest manifest. Raises DataError if the run has not released."""
    newest = read_status(settings).manifest
    if newest is None or newest.release is None:
        raise DataError("the data set is too small for a release; use more images")
    return newest


def _summary(
    settings: Settings, folder: Path, before: Manifest | None, after: Manifest, began: float, asked: Asked
) -> Summary:
    """Summarise the run between the manifests `before` and `after`."""
    assert after.release
    counts = committed(settings, _order(before), after.order)
    earlier = before.release.test.accuracy if before and before.release else None
    return Summary(
        run_id=settings.run.id,
        records_read=counts["records"],
        learned=counts["learned"],
        validation=counts[Split.VALIDATION],
        test=counts[Split.TEST],
        rejected=rejected(counts).total(),
        test_accuracy_before=earlier or 0.0,
        test_accuracy_after=after.release.test.accuracy or 0.0,
        release=after.url(after.release.object),
        topics=[*settings.input.topics, *(plan.name for plan in topics.output_plan(settings))],
        folder=str(folder),
        asked=asked,
        seconds=round(time.monotonic() - began, 1),
        next_command=_resume_command(),
    )


def _new_run(dataset: Dataset, data: Path | None, seed: int) -> Path:
    run_id = f"demo-{datetime.now():%Y%m%d-%H%M%S}"
    folder = (FOLDER / run_id).resolve()
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UsageError(
            f"the demo cannot create {folder}: {error.strerror}; run it in a folder that you may write to"
        ) from None
    (folder / "worker.toml").write_text(_settings(dataset, run_id, folder, seed))
    (folder / DATA).write_bytes(os.fsencode(data.resolve()) if data else b"")
    return folder


def _fed_before(folder: Path) -> Path | None:
    """Return the path of the data set that was fed to a run, or None for the digits."""
    path = (folder / DATA).read_bytes()
    return Path(os.fsdecode(path)) if path else None


def _remember(folder: Path) -> None:
    """Record that `demo --resume` continues this run."""
    latest = FOLDER / "latest"
    latest.unlink(missing_ok=True)
    latest.symlink_to(folder.name)


def _last_run() -> Path:
    latest = FOLDER / "latest"
    if not (latest / "worker.toml").is_file():
        raise UsageError(f"there is no demo to resume in {FOLDER}; run it once without RESUME=1")
    return latest.resolve()


def _remove_old_runs() -> int:
    """Remove old runs, except the last KEPT_RUNS and runs whose Kafka is running. Return the number of removed runs."""
    runs = sorted(path for path in FOLDER.iterdir() if RUN.fullmatch(path.name) and not path.is_symlink())
    old = [run for run in runs[:-KEPT_RUNS] if not is_running(run / "kafka")]
    for run in old:
        shutil.rmtree(run, ignore_errors=True)
    return len(old)


def _settings(dataset: Dataset, run_id: str, folder: Path, seed: int) -> str:
    digits, own = dataset.is_digits, set(dataset.held_out.values())
    return f"""\
# Written by `stream-learner demo`; kafka.bootstrap_servers comes from its broker.
[run]
id = "{run_id}"
seed = {seed}
# There is one worker, so after a kill it need not wait until the session of its previous process expires.
on_conflict = "take_over"

[input]
topics = ["{run_id}.images"]

[split]
validation = {0.0 if Split.VALIDATION in own else 0.1 if digits else 0.05}
test = {0.0 if Split.TEST in own else 0.2 if digits else 0.05}

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
