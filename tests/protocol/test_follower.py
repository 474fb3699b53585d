"""Programs that follow a run on the real broker, while it goes on, and while something goes wrong."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from confluent_kafka import Producer
from feed import client, digits, mixed
from harness import DEADLINE_S, NewRun, Run

from stream_learner import Follower, NoReleaseError, Release, StateError
from stream_learner.contract import tensors
from stream_learner.contract.topics import Names
from stream_learner.follow.choosing import choose
from stream_learner.streams import topics

EVERY = {"release__every_records": 200, "release__min_held_out": 1000}
"""Each candidate is released."""


@pytest.fixture
def follow() -> Iterator[Any]:
    """Return a function that follows a run until the end of the test."""
    opened: list[Follower] = []

    def follow(run: Run, **options: Any) -> Follower:
        opened.append(Follower(run.id, options.pop("servers", run.broker.bootstrap_servers), **options))
        return opened[-1]

    yield follow
    for follower in opened:
        follower.close()


def learn(run: Run, records: int = 250, seed: int = 0, *options: str) -> int:
    """Learn records, and return the sequence of the last release."""
    run.feed(mixed(records, seed))
    worker = run.start(*options)
    run.learned(worker)
    worker.stop()
    return run.published().manifest["release"]["sequence"]


def until(follower: Follower, condition: Any) -> Release:
    """Return the first release in use that satisfies a condition."""
    found: list[Release] = []

    def look() -> None:
        for release in follower:
            if condition(release):
                found.append(release)
                return

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(DEADLINE_S)
    assert found, follower.following
    return found[0]


def test_releases_are_in_use_while_the_run_goes_on(new_run: NewRun, follow: Any) -> None:
    run = new_run(**EVERY)
    follower: Follower = follow(run)
    with pytest.raises(NoReleaseError, match="has not released a model yet"):
        follower.latest()
    used: list[Release] = []
    reader = threading.Thread(target=lambda: used.extend(follower))
    reader.start()
    worker = run.start()
    for seed in range(3):
        run.feed(mixed(250, seed))
        run.learned(worker)
    log = run.finish(worker)
    last = until(follower, lambda release: release.described.sequence == log.manifest["release"]["sequence"])
    assert last is follower.latest()
    evaluation = tensors.decode(log.objects[log.manifest["release"]["evaluation"]["key"]])
    predicted = last.predict(evaluation["images"])
    assert predicted.labels == [last.labels[index] for index in evaluation["predictions"]]
    assert [release.order for release in follower.kept] == sorted({release.order for release in follower.kept})
    follower.close()
    reader.join(DEADLINE_S)
    orders = [release.order for release in used]
    assert orders == sorted({*orders})
    assert used[-1] is last


def test_a_follower_that_comes_later_begins_with_the_newest(finished: Any, follow: Any) -> None:
    run, log = finished
    follower: Follower = follow(run)
    release = follower.latest(DEADLINE_S)
    assert release.data == log.release()
    assert len(follower.kept) == 1
    state = follower.following
    assert state.release is release
    assert state.refused is None
    assert state.age_s is not None
    assert state.age_s > 0
    assert state.silence_s < DEADLINE_S


def test_a_worker_that_is_killed_and_replaced(new_run: NewRun, follow: Any) -> None:
    run = new_run(**EVERY)
    first = learn(run)
    follower: Follower = follow(run)
    assert follower.latest(DEADLINE_S).described.sequence == first
    run.feed(mixed(450, 1))
    worker = run.start()
    worker.reaches("checkpoint_sequence", first + 2)
    worker.kill()
    log = run.finish(run.start())
    until(follower, lambda release: release.described.sequence == log.manifest["release"]["sequence"])


def test_a_run_that_is_started_over(new_run: NewRun, follow: Any) -> None:
    run = new_run(**EVERY)
    learn(run)
    learn(run, 250, 1)
    follower: Follower = follow(run)
    before = follower.latest(DEADLINE_S)
    _make_again(run, Names.under(run.prefix).checkpoints)
    learn(run, 250, 2, "--fresh")
    assert until(follower, lambda release: release.manifest.epoch == 2) is not before


def _make_again(run: Run, *names: str) -> None:
    for name in names:
        run.delete_topic(name)
    topics.create(run.settings)


def test_topics_that_are_made_again(new_run: NewRun, follow: Any) -> None:
    run = new_run(**EVERY)
    learn(run)
    learn(run, 450, 1)
    follower: Follower = follow(run)
    before = follower.latest(DEADLINE_S)
    _make_again(run, *vars(Names.under(run.prefix)).values())
    for written in (run.store / run.id).rglob("*"):
        if written.is_file():
            written.unlink()
    assert follower.latest() is before
    learn(run, 250, 2, "--fresh")
    assert until(follower, lambda release: release is not before).manifest.epoch == 1


def forge(run: Run, manifest: dict[str, Any], epoch: int, **changes: Any) -> None:
    """Write a manifest of a later epoch, whose release has `changes`."""
    forged = manifest | {"epoch": epoch, "release": manifest["release"] | changes}
    producer = Producer(client(run.broker.bootstrap_servers))
    producer.produce(f"{run.prefix}.checkpoints", json.dumps(forged).encode(), run.id)
    producer.flush()


def refused(follower: Follower, why: str) -> None:
    waiting = threading.Event()
    for _ in range(int(DEADLINE_S / 0.05)):
        if why in (follower.following.refused or ""):
            return
        waiting.wait(0.05)
    raise AssertionError(follower.following)


def test_a_release_that_does_not_verify_is_not_used(new_run: NewRun, follow: Any) -> None:
    run = new_run(**EVERY)
    learn(run)
    follower: Follower = follow(run)
    genuine = follower.latest(DEADLINE_S)
    manifest = run.published().manifest
    described = manifest["release"]
    forge(run, manifest, 2, object=described["object"] | {"digest": "sha256:" + "0" * 64})
    refused(follower, "holds other bytes than the manifest names")
    forge(run, manifest, 3, chunks=[described["chunks"][0] | {"offset": 10_000}])
    refused(follower, "does not hold release")
    forge(run, manifest, 4, model=described["model"] | {"name": "os:system"})
    refused(follower, "'os:system' is not part of this program")
    forge(
        run,
        manifest,
        5,
        chunks=described["canary"]["chunks"],
        object=described["object"] | _size_and_digest(described["canary"]),
    )
    refused(follower, "does not fit its network")
    assert follower.latest() is genuine
    assert follower.kept == [genuine]
    forge(run, manifest, 6)
    until(follower, lambda release: release.manifest.epoch == 6)
    assert follower.following.refused is None


def _size_and_digest(published: dict[str, Any]) -> dict[str, Any]:
    return {name: published["object"][name] for name in ("size", "digest")}


def test_parameters_that_give_other_predictions_are_not_used(new_run: NewRun, follow: Any) -> None:
    """A release of the same network, whose canary is that of another one."""
    run = new_run(**EVERY)
    learn(run)
    described = run.published().manifest["release"]
    follower: Follower = follow(run)
    genuine = follower.latest(DEADLINE_S)
    learn(run, 450, 1)
    until(follower, lambda release: release is not genuine)
    manifest = run.published().manifest
    forged = {"object": manifest["release"]["canary"]["object"] | _size_and_digest(described["canary"])}
    forge(run, manifest, 2, canary=described["canary"] | forged)
    refused(follower, "computes other predictions here than where it was made")


def test_only_bytes(new_run: NewRun, follow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program without ONNX Runtime and PyTorch may follow, and compute nothing."""
    run = new_run(**EVERY)
    learn(run)
    monkeypatch.setattr("stream_learner.follow.releases.find_spec", lambda _: None)
    release = follow(run, compute=False).latest(DEADLINE_S)
    assert release.arrays()
    with pytest.raises(StateError, match="has no ONNX graph"):
        release.predict([digits()[0][0]])


def test_releases_that_only_the_store_holds(new_run: NewRun, follow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream_learner.follow.follower.RETRY_S", (0.1,))
    run = new_run(release__inline_max_bytes=0, **EVERY)

    def follower() -> Follower:
        return follow(run, store=str(run.store))

    def learned(seed: int) -> int:
        sequence = learn(run, 250, seed)
        until(early, lambda release: release.described.sequence == sequence)
        return sequence

    early = follower()  # the worker has not created the store yet
    first = learned(0)
    second = learned(1)
    missing = run.store / run.published().manifest["release"]["object"]["key"]
    newest = missing.read_bytes()
    missing.unlink()
    late = follower()
    assert late.latest(DEADLINE_S).described.sequence == first
    refused(late, "is missing")
    # A withdrawn release leaves use, also while the newest one is refused.
    choose(run.settings, "withdraw", first)
    assert next(use for use in late.uses() if use.withdrawn).release is None
    refused(late, "is missing")
    later = follower()
    refused(later, "is missing")
    with pytest.raises(NoReleaseError, match="is missing"):
        later.latest()
    missing.write_bytes(newest)
    for each in (late, later):
        until(each, lambda release: release.described.sequence == second)
    sequence = learned(2)
    for each in (late, later):
        until(each, lambda release: release.described.sequence == sequence)


def test_a_release_with_a_graph_needs_no_torch(new_run: NewRun, follow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new_run(release__formats=["safetensors", "onnx"], release__format_wait_s=120.0, **EVERY)
    learn(run)
    log = run.published()
    described = log.manifest["release"]
    assert described["missing_formats"] == {}
    evaluation = tensors.decode(log.objects[described["evaluation"]["key"]])
    assert described["onnx"]["compared"] == len(evaluation["images"])
    monkeypatch.setattr("stream_learner.follow.releases.find_spec", lambda library: library != "torch" or None)
    monkeypatch.setattr("stream_learner.networks.build", None)
    predicted = follow(run).latest(DEADLINE_S).predict(evaluation["images"])
    assert predicted.labels == [described["labels"][index] for index in evaluation["predictions"]]
    assert np.allclose(predicted.probabilities.sum(1), 1, atol=1e-5)
