"""A run that was stopped or killed learns the same, byte for byte, as one that was not."""

import json
from typing import Any

import safetensors.numpy
from checker import Log
from feed import good, whole_batches
from harness import NewRun

RECORDS = 3000
BATCH = 8
SETTINGS: dict[str, Any] = {
    "model__name": "cnn",
    "learning__strategy": "er",
    "learning__threads": 1,
    # Only full batches close, wherever a run begins.
    "batch__size": BATCH,
    "batch__linger_s": 3600.0,
    # Small enough that all of them forget, and that what they kept is rewritten.
    "memory__max_items": 200,
    "held_out__max_items": 100,
    "release__every_records": 700,
}


def test_stopped_and_killed_runs_equal_an_undisturbed_one(new_run: NewRun) -> None:
    undisturbed = new_run(**SETTINGS, checkpoint__every_records=400)
    undisturbed.feed(whole_batches(good(RECORDS), BATCH))
    same_input = {"input__topics": [undisturbed.input]}
    stopped = new_run(**SETTINGS, **same_input, checkpoint__every_records=150)
    killed = new_run(**SETTINGS, **same_input, checkpoint__every_records=250)
    stopped.fed = killed.fed = undisturbed.fed

    expected = state(undisturbed.finish(undisturbed.start()))

    worker = stopped.start()
    worker.reaches("checkpoint_sequence", 4)
    worker.stop()
    assert stopped.saved() != undisturbed.ends()
    assert state(stopped.finish(stopped.start())) == expected

    for manifests in (2, 6):
        worker = killed.start()
        worker.reaches("checkpoint_sequence", manifests)
        worker.kill()
    assert state(killed.finish(killed.start())) == expected


def state(log: Log) -> dict[str, Any]:
    """Every tensor's bytes, the document and the release."""
    data = log.objects[log.manifest["state"]["url"]]
    tensors = {name: (t.dtype.str, t.shape, t.tobytes()) for name, t in safetensors.numpy.load(data).items()}
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    document = json.loads(header["__metadata__"]["document"])
    assert tensors["memory/digests"] != tensors["test/digests"]
    for part in ("trainer/model", "trainer/optimizer", "memory", "validation", "test", "rng"):
        assert any(name.startswith(f"{part}/") for name in tensors), f"no {part} in the state"
    return tensors | document | {"release": log.manifest["release"]["object"]["digest"]}
