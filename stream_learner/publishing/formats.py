"""Make the other formats of a release (besides safetensors), and compare them with PyTorch before publishing."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec
import numpy as np
import structlog

from stream_learner.checkpoints.store import Store
from stream_learner.config import ReleaseSettings
from stream_learner.contract.manifest import ModelSpec, Release
from stream_learner.errors import StateError, StoreError, UsageError
from stream_learner.inference.agreement import disagreement
from stream_learner.inference.onnx import OnnxModel
from stream_learner.learning.outcome import Candidate
from stream_learner.networks.onnx_export import Exported
from stream_learner.networks.tensors import as_arrays

log = structlog.get_logger()

EXPORTER = "stream_learner.networks.onnx_export"
EXPORT_S = 600.0
# Comparing takes CPU time from training, on the publisher's thread.
COMPARE_S = 5.0
COMPARE_BATCH = 32


@dataclass(frozen=True, slots=True)
class Onnx:
    """The fields of `contract.manifest.OnnxGraph`, and the graph itself."""

    graph: bytes
    unused: list[str]
    compared: int


class Export(Protocol):
    """An export that runs beside the worker."""

    def result(self, timeout_s: float) -> Exported | None: ...
    def stop(self) -> None: ...


class ExportProcess:
    """A process that exports a network; see `networks/onnx_export.py`.

    It searches for modules on the same path as this process.
    """

    def __init__(self, spec: ModelSpec):
        self._answer: bytes | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", EXPORTER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,  # Ctrl-C in a terminal asks the worker alone to stop
        )
        self._thread = threading.Thread(target=self._talk, args=(msgspec.json.encode(spec),), daemon=True)
        self._thread.start()

    def _talk(self, question: bytes) -> None:
        try:
            self._answer, _ = self._process.communicate(question, EXPORT_S)
        except subprocess.TimeoutExpired:
            self.stop()
            self._process.wait()

    def result(self, timeout_s: float) -> Exported | None:
        """Return the result, or None if there is none after `timeout_s` seconds."""
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return None
        try:
            return msgspec.msgpack.decode(self._answer or b"", type=Exported)
        except msgspec.DecodeError:
            return Exported(failure=f"the export ended with code {self._process.returncode} before its result")

    def stop(self) -> None:
        """End the process."""
        self._process.kill()


Graph = tuple[ModelSpec, Exported]
"""A network and its graph."""


def released_graph(store: Store, release: Release | None) -> Graph | None:
    """Return the graph of a release, or None if it has none or the store lacks the object."""
    if release is None or release.onnx is None:
        return None
    try:
        return release.model, Exported(store.fetch(release.onnx.published.object), release.onnx.unused)
    except (StateError, StoreError) as error:
        log.warning("the graph of the last release cannot be read, so it is exported again", why=str(error))
        return None


class Formats:
    """Makes the ONNX graphs of candidates. A network is exported once, until its number of classes changes."""

    def __init__(
        self,
        settings: ReleaseSettings,
        released: Graph | None = None,
        start_export: Callable[[ModelSpec], Export] = ExportProcess,
    ):
        """`released` is the graph of the last release. A restarted worker uses it instead of a new export."""
        self._settings = settings
        self._released = released
        self._start_export = start_export
        self._export: tuple[ModelSpec, Export] | None = None
        self._exported: Graph | None = None

    def onnx(self, candidate: Candidate) -> Onnx | str:
        """Return the candidate as an ONNX graph, or the reason why there is none.

        Wait at most `release.format_wait_s` for the export, which continues for the next release.
        """
        if self._released:
            (spec, graph), self._released = self._released, None
            if spec == candidate.model and isinstance(made := _made(graph, candidate), Onnx):
                self._exported = spec, graph
                return made
        exported = self._graph(candidate.model)
        if exported is None:
            return f"the export takes longer than release.format_wait_s = {self._settings.format_wait_s:g}"
        return exported.failure if exported.failure is not None else _made(exported, candidate)

    def close(self) -> None:
        """End an export that still runs."""
        if self._export:
            self._export[1].stop()

    def _graph(self, spec: ModelSpec) -> Exported | None:
        if self._exported and self._exported[0] == spec:
            return self._exported[1]
        if self._export is None or self._export[0] != spec:
            self.close()
            self._export = spec, self._start_export(spec)
        exported = self._export[1].result(self._settings.format_wait_s)
        if exported is not None:
            self._exported, self._export = (spec, exported), None
            if exported.failure is not None:
                log.warning("the network has no ONNX graph; releases go without it", why=exported.failure)
        return exported


def _made(exported: Exported, candidate: Candidate) -> Onnx | str:
    """Return the graph if it computes what the candidate computes, or the reason why it does not."""
    try:
        model = OnnxModel(exported.graph, as_arrays(candidate.parameters), exported.unused)
        return Onnx(exported.graph, exported.unused, _compare(model, candidate))
    except (UsageError, ValueError) as error:
        return str(error)


def _compare(model: OnnxModel, candidate: Candidate, clock: Callable[[], float] = time.monotonic) -> int:
    """Return the number of test images, as many as time allows, for which the model agrees with the candidate.

    Raises ValueError when it does not agree.
    """
    images_NHWC, expected = candidate.evaluation["images"].numpy(), candidate.logits.numpy()
    deadline, logits = clock() + COMPARE_S, []
    for start in range(0, len(images_NHWC), COMPARE_BATCH):
        logits.append(model(images_NHWC[start : start + COMPARE_BATCH])[0])
        if clock() > deadline:
            break
    if not logits:
        return 0
    compared = sum(map(len, logits))
    if why := disagreement(np.concatenate(logits), expected[:compared]):
        raise ValueError(f"ONNX Runtime and PyTorch disagree: {why}")
    return compared
