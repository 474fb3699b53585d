"""Keys of a run's objects in the store: one place for what is written and for what a manifest may name.

`<run.id>/<sequence>-<uuid>/<name>` are the objects of one checkpoint. `<run.id>/memory/<sequence>-<uuid>` are parts of
states, which outlive the checkpoint that wrote them. `<run.id>/trials/<uuid>` are what workers try a store with.
`<run.id>/lives.json` remembers workers that died.
"""

import re
import uuid

from stream_learner.contract.documents import END

STATE = "state.safetensors"
RELEASE = "release.safetensors"
EVALUATION = "evaluation.safetensors"

_UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_NUMBERED = rf"([0-9]{{12,19}})-{_UUID}"
# Without anchors, for JSON Schema.
_PATTERN = rf"[a-zA-Z0-9._-]{{1,200}}/({_NUMBERED}/(state|release|evaluation)\.safetensors|memory/{_NUMBERED})"
PATTERN = f"^{_PATTERN}" + END


def new_folder(run_id: str, sequence: int) -> str:
    """Return a folder for the objects of one attempt to write a checkpoint; no other attempt uses it."""
    return f"{run_id}/{sequence:012d}-{uuid.uuid4()}"


def new_part(run_id: str, sequence: int) -> str:
    """Return a key for a part. It is not the digest: another worker could write or delete what this one names."""
    return f"{run_id}/memory/{sequence:012d}-{uuid.uuid4()}"


def trials(run_id: str) -> str:
    """Return the folder of objects that exist only while a starting worker tries the store."""
    return f"{run_id}/trials"


def lives(run_id: str) -> str:
    """Return the key of what is remembered of a run's workers that died."""
    return f"{run_id}/lives.json"


def is_key(text: str) -> bool:
    """Return whether the text is the key of some run's object."""
    return re.fullmatch(_PATTERN, text) is not None


def check_object(key: str, run_id: str, sequence: int, name: str) -> None:
    """Raise ValueError when the key is not that of checkpoint `sequence`'s object `name`."""
    found = re.fullmatch(rf"{re.escape(run_id)}/{_NUMBERED}/{re.escape(name)}", key)
    if not found or int(found[1]) != sequence:
        raise ValueError(f"the key {key!r} is not that of {name} of checkpoint {sequence} of run {run_id}")


def check_part(key: str, run_id: str) -> None:
    """Raise ValueError when the key is not that of a part."""
    if not re.fullmatch(rf"{re.escape(run_id)}/memory/{_NUMBERED}", key):
        raise ValueError(f"the key {key!r} is not that of a part of a state of run {run_id}")
