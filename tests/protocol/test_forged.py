"""Forged manifests: nothing that they name is imported, read, deleted or resumed."""

import json
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from confluent_kafka import Producer
from edits import edited
from feed import client, mixed
from harness import NewRun, Run
from hypothesis import given, settings
from outputs import Log

from stream_learner.checkpoints.store import Store
from stream_learner.contract.manifest import decode_manifest, digest
from stream_learner.errors import ExitCode, InputError, StateError
from stream_learner.publishing.recover import Fetch, check_positions
from stream_learner.publishing.topic_ids import check_topic_ids
from stream_learner.streams import offsets

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def published(new_run: NewRun) -> Run:
    """A run that has published a release."""
    run = new_run(release__every_records=400)
    run.feed(mixed(500))
    run.finish(run.start())
    return run


def write(run: Run, topic: str, value: bytes, key: bytes | None = None) -> None:
    """Write a record to an output topic, as anybody with the right to write can."""
    producer = Producer(client(run.broker.bootstrap_servers))
    producer.produce(f"{run.id}.{topic}", value, key or run.id.encode())
    producer.flush()


def forge(run: Run, change: Change) -> dict[str, Any]:
    """Write and return a manifest that could be the run's next one, with a change. Its state does not exist."""
    manifest = run.published().manifest
    manifest["predecessor"] = digest(run.read("history")[-1].value or b"")
    manifest["sequence"] += 1
    manifest["state"]["key"] = f"{run.id}/{manifest['sequence']:012d}-{uuid.uuid4()}/state.safetensors"
    manifest["kept"].append({**manifest["kept"][-1], "sequence": manifest["sequence"], "object": manifest["state"]})
    change(manifest)
    value = json.dumps(manifest).encode()
    write(run, "history", value, str(manifest["sequence"]).encode())
    write(run, "checkpoints", value)
    return manifest


def test_a_path_in_a_manifest_does_not_lead_out_of_the_runs_folder(published: Run, new_run: NewRun) -> None:
    run = published
    victim = run.store / "victim"
    victim.write_text("of somebody else")
    forged: dict[str, Any] = {}
    keys = [f"{run.id}/../victim", "victim", "../objects/victim", victim.as_uri()]
    for key in keys:
        forged = forge(run, lambda manifest, key=key: manifest["parts"].append({**manifest["state"], "key": key}))
    worker = run.start()
    worker.learning()
    assert sum(worker.metric("foreign_records_total").values()) >= len(keys)
    worker.stop()
    another = new_run()
    write(another, "checkpoints", json.dumps({**forged, "run_id": another.id}).encode())
    assert "matching regex" in another.start().ends(ExitCode.STATE)
    assert victim.exists()


def test_what_is_behind_a_link_is_neither_read_nor_deleted(published: Run) -> None:
    run = published
    kept = run.published().manifest["kept"]
    folder = (run.store / kept[0]["object"]["key"]).parent
    outside = folder.rename(run.folder / "outside")
    folder.symlink_to(outside)
    files = {path: path.read_bytes() for path in outside.iterdir()}
    # An old state that is not kept any longer is deleted, but not through a link.
    run.overrides["checkpoint.keep"] = 1
    run.feed(mixed(500))
    text = run.start().ends(ExitCode.STATE)
    assert f"{folder.name}/state.safetensors is a symbolic link or lies behind one" in text
    assert {path: path.read_bytes() for path in outside.iterdir()} == files


def test_whatever_a_manifest_says_it_is_resumed_or_refused(finished: tuple[Run, Log]) -> None:
    """Everything that a start does with a manifest before it restores the state, by random edits of a real one."""
    run, log = finished
    fetch = Fetch(run.settings, Store(run.settings.checkpoint.store), ())
    first, end = offsets.bounds(run.settings.kafka, run.settings.input.topics)
    resumed = 0

    @settings(max_examples=500)
    @given(edited(log.manifest, most=2))
    def look(document: Any) -> None:
        nonlocal resumed
        with suppress(ValueError, StateError, InputError):
            manifest = decode_manifest(json.dumps(document).encode())
            check_topic_ids(manifest.topic_ids, manifest.topic_ids)
            check_positions(manifest, first, end, "stop")
            fetch(manifest, "", {})
            resumed += 1

    look()
    assert resumed


def test_a_name_in_a_manifest_is_not_imported(published: Run) -> None:
    """Importing the module `this` would print a poem."""
    run = published
    end = run.published().manifest["sequence"] + 2

    def rename(manifest: dict[str, Any]) -> None:
        manifest["release"]["model"]["name"] = "this:d"

    forge(run, rename)
    text = run.start().ends(ExitCode.STATE)
    assert "its model.name is 'this:d', the settings say 'mlp'" in text
    forge(run, rename)
    said = run.call("rebuild", "--from", str(end - 1), "--to", str(end)).ends(ExitCode.STATE)
    assert "its model.name is 'this:d', the settings say 'mlp'" in said
    assert "Zen" not in text + said
