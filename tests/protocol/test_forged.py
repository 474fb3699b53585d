"""Manifests written by somebody else: nothing of theirs is imported, read, deleted or resumed."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import Producer
from feed import client, mixed
from harness import NewRun, Run

from stream_learner.errors import ExitCode
from stream_learner.records.manifest import digest

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def published(new_run: NewRun) -> Run:
    """A run that has published a release."""
    run = new_run()
    run.feed(mixed(1500))
    run.finish(run.start())
    return run


def write(run: Run, topic: str, value: bytes, key: bytes | None = None) -> None:
    """Write a record to an output topic, as anybody with the right to write can."""
    producer = Producer(client(run.broker.bootstrap_servers))
    producer.produce(f"{run.id}.{topic}", value, key or run.id.encode())
    producer.flush()


def forge(run: Run, change: Change) -> dict[str, Any]:
    """Write a manifest that would be the run's next one, with a change; the manifest."""
    manifest = run.published().manifest
    manifest["sequence"] += 1
    change(manifest)
    value = json.dumps(manifest).encode()
    write(run, "history", value, str(manifest["sequence"]).encode())
    write(run, "checkpoints", value)
    return manifest


def test_a_name_in_a_manifest_is_not_imported(published: Run) -> None:
    """Importing the module `this` would print a poem."""
    run = published
    end = run.published().manifest["sequence"] + 2

    def rename(manifest: dict[str, Any]) -> None:
        manifest["release"]["model"]["name"] = "this:d"
        manifest["predecessor"] = digest(run.read("history")[-1].value or b"")

    forge(run, rename)
    text = run.start().ends(ExitCode.STATE)
    assert "its model.name is 'this:d', the settings say 'mlp'" in text
    forge(run, rename)
    said = run.call("rebuild", "--from", str(end - 1), "--to", str(end)).ends(ExitCode.STATE)
    assert "its model.name is 'this:d', the settings say 'mlp'" in said
    assert "Zen" not in text + said
