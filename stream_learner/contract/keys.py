"""Keys of a run's objects in the store, and checks of the keys in a manifest.

* `<run.id>/<sequence>-<uuid>/<name>`: objects of one checkpoint.
* `<run.id>/memory/<sequence>-<uuid>`: parts of states. Later checkpoints share them.
* `<run.id>/trials/<uuid>`: objects with which a starting worker tests the store.
* `<run.id>/lives.json`, `<run.id>/lives-<shard>.json`: notes on workers that died.
"""

import re
import uuid

from stream_learner.contract.documents import END

STATE = "state.safetensors"
RELEASE = "release.safetensors"
EVALUATION = "evaluation.safetensors"
CANARY = "canary.safetensors"
ONNX = "graph.onnx"
MANIFEST = "manifest.json"

_UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_NUMBERED = rf"([0-9]{{12,19}})-{_UUID}"
# Without anchors, for JSON Schema.
_NAMES = r"((state|release|evaluation|canary)\.safetensors|graph\.onnx|manifest\.json)"
_PATTERN = rf"[a-zA-Z0-9._-]{{1,200}}/({_NUMBERED}/{_NAMES}|memory/{_NUMBERED})"
PATTERN = f"^{_PATTERN}" + END


def new_folder(run_id: str, sequence: int) -> str:
    """Return a folder for the objects of one attempt to write a checkpoint. No other attempt uses it."""
    return f"{run_id}/{sequence:012d}-{uuid.uuid4()}"


def new_part(run_id: str, sequence: int) -> str:
    """Return a new key for a part.

    The key is not the part's digest. Otherwise another worker could write or delete a part that this worker names.
    """
    return f"{run_id}/memory/{sequence:012d}-{uuid.uuid4()}"


def trials(run_id: str) -> str:
    """Return the folder of the objects with which a starting worker tests the store."""
    return f"{run_id}/trials"


def lives(run_id: str, shard: int = 0) -> str:
    """Return the key of the notes on a run's workers that died: of the rank whose first shard is `shard`."""
    return f"{run_id}/lives-{shard}.json" if shard else f"{run_id}/lives.json"


def is_key(text: str) -> bool:
    """Return whether the text is the key of an object of any run."""
    return re.fullmatch(_PATTERN, text) is not None


def check_object(key: str, run_id: str, sequence: int, name: str) -> None:
    """Raise ValueError unless the key belongs to the object `name` of checkpoint `sequence`."""
    found = re.fullmatch(rf"{re.escape(run_id)}/{_NUMBERED}/{re.escape(name)}", key)
    if not found or int(found[1]) != sequence:
        raise ValueError(f"the key {key!r} does not belong to {name} of checkpoint {sequence} of run {run_id}")


def check_part(key: str, run_id: str) -> None:
    """Raise ValueError unless the key belongs to a part of a state of this run."""
    if not re.fullmatch(rf"{re.escape(run_id)}/memory/{_NUMBERED}", key):
        raise ValueError(f"the key {key!r} does not belong to a part of a state of run {run_id}")
