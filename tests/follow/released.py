"""Releases without a worker, and a process that writes them."""

import re
from pathlib import Path

import numpy as np

from stream_learner.contract import ledger, tensors
from stream_learner.contract.manifest import (
    Arithmetic,
    Manifest,
    ModelArguments,
    ModelSpec,
    Object,
    Preprocessing,
    Published,
    State,
    digest,
)
from stream_learner.contract.manifest import Release as Described
from stream_learner.contract.window import accuracy
from stream_learner.follow.directories import open_directory
from stream_learner.follow.releases import Objects, Release

CLASSES = 3
NUMBERED = re.compile(r"(\d+-)?\d+")
MADE = "2025-01-01T00:00:00.000Z"


def release(sequence: int, epoch: int = 1, value: float = 0.0, graph: bytes | None = None) -> Release:
    """A release whose parameter has this value."""
    parameters = tensors.encode({"weight": np.full((1, CLASSES), value, np.float32)})
    described = Described(
        sequence=sequence,
        created_at=MADE,
        object=_object("release.safetensors", sequence, parameters),
        chunks=[],
        model=ModelSpec("mlp", ModelArguments(classes=3, height=8, width=8, channels=1, mean=[0.5], std=[0.25])),
        labels=["cat", 7, "\u00e9"],
        preprocessing=Preprocessing(8, 8, 1, [0.5], [0.25]),
        dtype="float32",
        validation=accuracy([]),
        test=accuracy([]),
        evaluation=_object("evaluation.safetensors", sequence),
        canary=Published(_object("canary.safetensors", sequence), []),
        missing_formats={} if graph else {"onnx": "a reason"},
    )
    state = _object("state.safetensors", sequence)
    manifest = Manifest(
        program="stream-learner 0.1.0",
        run_id="digits",
        epoch=epoch,
        sequence=sequence,
        predecessor=None,
        created_at=MADE,
        positions={},
        spans={},
        lost={},
        ledger=ledger.encode([], {}),
        arithmetic=Arithmetic("2.9.0", "cpu", "AVX2", 1, digest(b"settings")),
        store="file:///objects",
        topic_ids={},
        state=state,
        kept=[State(sequence, state)],
        parts=[],
        released=True,
        decision=None,
        release=described,
    )
    return Release(manifest, described, Objects(parameters, b"", graph))


def _object(name: str, sequence: int, data: bytes = b"") -> Object:
    return Object(f"digits/{sequence:012d}-6f1c1ad0-8f5b-4b0a-9d55-0a4f7c1b2e3d/{name}", len(data), digest(data))


def write_endlessly(path: Path, layout: str, graph: bytes, keep: int) -> None:
    """Write one release after the other, until the process is killed. A restart continues with the last release."""
    with open_directory(path, layout, "digits", keep) as directory:
        sequence = _last(directory.path)
        while True:
            directory.put(release(sequence, value=sequence, graph=graph))
            sequence += 1


def _last(path: Path) -> int:
    return max(
        [int(entry.name.split("-")[-1]) for entry in path.iterdir() if NUMBERED.fullmatch(entry.name)], default=1
    )
