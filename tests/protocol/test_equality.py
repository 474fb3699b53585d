"""A run that was stopped or killed learns the same, byte for byte, as one that was not."""

import json
import signal
from typing import Any

import safetensors.numpy
from child import Point
from feed import flipped, good, whole_batches
from harness import NewRun
from outputs import Log, discarded, places, roll_backs

RECORDS = 3000
BATCH = 16
PERIOD = 1400
SETTINGS: dict[str, Any] = {
    "model__name": "cnn",
    "learning__learning_rate": 0.02,
    "learning__threads": 1,
    # Only full batches close, wherever a run begins.
    "batch__size": BATCH,
    "batch__linger_s": 3600.0,
    # Small enough that all of them forget, and that what they kept is rewritten.
    "memory__max_items": 200,
    "held_out__max_items": 100,
    # Wrong labels are refused: the second time, training goes back.
    "release__every_records": 350,
    "release__max_drop": 0.02,
    "release__patience": 2,
}


def test_stopped_and_killed_runs_equal_an_undisturbed_one(new_run: NewRun) -> None:
    undisturbed = new_run(**SETTINGS, checkpoint__every_records=400)
    undisturbed.feed(whole_batches(flipped(good(RECORDS), PERIOD), BATCH))
    same_input = {"input__topics": [undisturbed.input]}
    stopped = new_run(**SETTINGS, **same_input, checkpoint__every_records=150)
    killed = new_run(**SETTINGS, **same_input, checkpoint__every_records=250)
    stopped.fed = killed.fed = undisturbed.fed

    log = undisturbed.finish(undisturbed.start())
    expected = state(log)
    assert len(roll_backs(log)) > 1

    worker = stopped.start_signalled(Point("transaction", "commit", 4), signal.SIGSTOP)
    worker.paused()
    worker.signal(signal.SIGTERM)
    worker.signal(signal.SIGCONT)
    worker.ends(0)
    assert stopped.saved() != undisturbed.ends()
    assert state(stopped.finish(stopped.start())) == expected

    killed.start_signalled(Point("transaction", "commit", 2)).ends(-signal.SIGKILL)
    # In the middle of going back. The release was some checkpoints ago; the next one takes it from the state then.
    killed.start_signalled(Point("memory", "drop_since")).ends(-signal.SIGKILL)
    manifest = json.loads(killed.read("checkpoints")[-1].value or b"")
    assert manifest["sequence"] > manifest["release"]["sequence"]
    worker = killed.start()
    worker.reaches("records_discarded_total", discarded(log))
    assert state(killed.finish(worker)) == expected


def state(log: Log) -> dict[str, Any]:
    """Every tensor's bytes, the document and the release."""
    data = log.objects[log.manifest["state"]["key"]]
    tensors = {name: (t.dtype.str, t.shape, t.tobytes()) for name, t in safetensors.numpy.load(data).items()}
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    document = json.loads(header["__metadata__"]["document"])
    assert tensors["memory/digests"] != tensors["test/digests"]
    for part in ("trainer/model", "trainer/optimizer", "memory", "validation", "test", "rng"):
        assert any(name.startswith(f"{part}/") for name in tensors), f"no {part} in the state"
    went_back = {"discarded": [list(places(manifest["discarded"]).values()) for manifest in roll_backs(log)]}
    return tensors | document | went_back | {"release": log.manifest["release"]["object"]["digest"]}
