"""Served predictions are scored when their labels arrive: each exactly once, whatever happens to the worker."""

import signal
import time
from dataclasses import replace
from typing import Any

import safetensors.numpy
from child import Point
from confluent_kafka import TopicPartition
from feed import good, whole_batches
from harness import DEADLINE_S, NewRun, Run
from outputs import Log
from served_predictions import Forecast, check_served, forecast, send, send_drafts, with_id
from test_equality import state

from stream_learner.errors import ExitCode
from stream_learner.streams import topics

RECORDS = 400
DELAY_S = 50
SETTINGS: dict[str, Any] = {
    "served__evaluate": True,
    # Only full batches close, wherever a run begins.
    "batch__size": 8,
    "batch__linger_s": 3600.0,
    "learning__threads": 1,
    "release__every_records": 100,
}


def feed(run: Run, began_ms: int) -> None:
    """Feed an input of one record a second. Three of four records have an id."""
    drafts = whole_batches(good(RECORDS), SETTINGS["batch__size"])
    dated = ((with_id(d, f"image-{i}") if i % 4 else d, began_ms + 1000 * i) for i, d in enumerate(drafts))
    run.fed += send_drafts(run.broker.bootstrap_servers, run.input, dated)


def publish(run: Run, began_ms: int) -> list[Forecast]:
    """Publish predictions of the images, 50 seconds before their labels. Return them."""
    forecasts = []
    for i, fed in enumerate(run.fed):
        label, at_ms = dict(fed.draft.headers)["label"].decode(), began_ms + 1000 * (i - DELAY_S)
        forecasts.append(forecast(run.id, f"image-{i}", 1 + i // 200, label if i % 3 else "wrong", at_ms))
        if i % 10 == 0:
            forecasts += [
                forecast(run.id, f"image-{i + 1}", 2, label, at_ms),
                forecast(run.id, f"image-{i + 1}", 2, label, at_ms),  # repeated
                forecast(run.id, f"never-{i}", 1, label, at_ms),
                forecast(run.id, "", 1, label, at_ms),
                forecast(run.id, f"image-{i}", 1, label, at_ms, {"run_id": "another"}),
                forecast(run.id, f"image-{i}", 1, label, at_ms, {"id": "not the key"}),
            ]
    send(run.broker.bootstrap_servers, topic(run), forecasts)
    run.predictions += len(forecasts)
    return forecasts


def topic(run: Run) -> str:
    return f"{run.prefix}.predictions"


def check(run: Run, log: Log, forecasts: list[Forecast]) -> None:
    assert [violation.what for violation in check_served(log, run.fed, forecasts, topic(run))] == []


def test_killed_runs_equal_an_undisturbed_one_and_are_rebuilt(new_run: NewRun) -> None:
    began_ms = int(time.time() - 3600) * 1000
    undisturbed = new_run(**SETTINGS, checkpoint__every_records=150)
    feed(undisturbed, began_ms)
    forecasts = publish(undisturbed, began_ms)
    worker = undisturbed.start()
    undisturbed.learned(worker)
    assert sum(worker.metric("served_label_delay_seconds_count").values()) > RECORDS / 2
    log = undisturbed.finish(worker)
    check(undisturbed, log, forecasts)
    lost = replace(log, metrics=log.metrics[1:])
    twice = replace(log, metrics=[*log.metrics, log.metrics[-1]])
    for damaged in (lost, twice):
        assert [*check_served(damaged, undisturbed.fed, forecasts, topic(undisturbed))]
    expected = state(log)
    assert log.manifest["topic_ids"].keys() >= {topic(undisturbed)}
    assert sum(release["delay_s"]["count"] for w in log.windows for release in w["served"]["releases"]) > RECORDS / 2
    for window in log.windows:
        for release in window["served"]["releases"]:
            assert DELAY_S <= release["delay_s"]["min"] <= release["delay_s"]["max"] <= DELAY_S + 1

    killed = new_run(**SETTINGS, checkpoint__every_records=60, input__topics=[undisturbed.input])
    killed.fed = undisturbed.fed
    forecasts = publish(killed, began_ms)
    for point in (
        Point("transaction", "commit", 2, before=True),
        Point("transaction", "commit"),
    ):
        killed.start_signalled(point).ends(-signal.SIGKILL)
    log = killed.finish(killed.start())
    check(killed, log, forecasts)
    assert state(log) == expected
    said = killed.call("rebuild", "--from", "0", "--to", str(log.manifest["sequence"])).ends(0)
    assert f"state {log.manifest['state']['digest']}, as published" in said


def test_the_evaluation_may_be_switched_and_the_topic_may_change(new_run: NewRun) -> None:
    # With this time-out, a worker looks at its topics every second.
    run = new_run(checkpoint__every_s=0.2, checkpoint__every_records=1000, kafka__request_timeout_s=3.0)
    labels = [dict(draft.headers)["label"].decode() for draft in good(60)]
    drafts = [with_id(draft, f"image-{i}") for i, draft in enumerate(good(60))]

    def predict(*numbers: int) -> None:
        """Publish right predictions of these images."""
        forecasts = (forecast(run.id, f"image-{i}", 1, labels[i], int(time.time() * 1000)) for i in numbers)
        run.predictions += len(send(run.broker.bootstrap_servers, topic(run), forecasts))

    def live(first: int, end: int, **settings: Any) -> list[dict[str, Any] | None]:
        """Let a worker learn these images, and return what its windows say about predictions."""
        before = len(run.read("metrics"))
        run.overrides |= settings
        worker = run.start()
        worker.learning()
        if run.predictions:
            run.learned(worker)  # predictions come before their labels
        run.feed(drafts[first:end])
        run.learned(worker)
        worker.stop()
        return [window["served"] for window in run.published().windows[before:]]

    def scored(served: list[dict[str, Any] | None]) -> int:
        return sum(one["scored"] for one in served if one)

    evaluating = {"served.evaluate": True}
    predict(1, 15)
    run.predictions = 0
    assert live(0, 10) == [None] * len(run.read("metrics"))
    assert topic(run) not in run.published().manifest["positions"]

    # Switched on: read from the beginning. The labels of the first ten images are gone.
    predict(21)
    run.predictions = 3
    assert scored(live(10, 20, **evaluating)) == 1
    assert run.published().manifest["positions"][topic(run)] == {"0": 3}

    # A gap: input.on_lost is for the input.
    predict(22, 30)
    place = TopicPartition(topic(run), 0, 4)
    run.admin.delete_records([place])[place].result(DEADLINE_S)
    assert scored(live(20, 30)) == 1
    assert [w["lost"][topic(run)] for w in run.published().windows if w["lost"]] == [{"0": [[3, 4]]}]

    # Deleted, and created again. The worker learns on, and what waits in the state is scored all the same.
    worker = run.start()
    worker.learning()
    run.delete_topic(topic(run))
    run.predictions = 0
    run.feed(drafts[30:31])
    run.learned(worker)
    worker.until("a save", lambda: run.saved()[run.input, 0] == 31)
    topics.create(run.settings)
    predict(35)
    run.predictions = 0
    run.feed(drafts[31:32])
    run.learned(worker)
    worker.until("a warning", lambda: "so it is not read until the worker restarts" in worker.text())
    run.feed(drafts[32:34])
    run.learned(worker)
    worker.stop()
    assert run.published().windows[-1]["served"]["waiting"] == 1  # of the first image
    run.predictions = 1
    assert scored(live(34, 40)) == 1
    assert "the predictions topic was created again" in run.workers[-1].text()
    assert run.published().manifest["positions"][topic(run)] == {"0": 1}
    run.delete_topic(topic(run))
    assert "stream-learner topics" in run.start().ends(ExitCode.TOPICS)

    # Switched off: the topic is not needed.
    run.predictions = 0
    assert live(40, 50, **{"served.evaluate": False})[-1] is None
    log = run.published()
    assert topic(run) not in log.manifest["positions"] | log.manifest["topic_ids"]
    assert "served/predictions" not in safetensors.numpy.load(log.objects[log.manifest["state"]["key"]])
