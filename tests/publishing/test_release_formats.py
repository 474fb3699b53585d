"""Formats of a release beside safetensors, with a stand-in for the process that exports."""

import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from exporting import built, images_of, spec_of
from fake_run import FakeRun, candidate

from stream_learner.checkpoints.store import Store
from stream_learner.config import ReleaseSettings
from stream_learner.contract.keys import ONNX as GRAPH
from stream_learner.contract.manifest import ModelSpec, OnnxGraph
from stream_learner.contract.objects import Published
from stream_learner.learning.outcome import Candidate
from stream_learner.networks.onnx_export import Exported, export
from stream_learner.publishing.canary import MAX_BYTES, canary
from stream_learner.publishing.formats import ExportProcess, Formats, Onnx, released_graph

SPEC, GROWN = spec_of("mlp", classes=2), spec_of("mlp", classes=3)


class FakeExport:
    """An export that returns its result at the last of `questions` calls of `result`."""

    def __init__(self, result: Exported, questions: int = 1):
        self._result = result
        self._questions = questions
        self.stopped = False

    def result(self, timeout_s: float) -> Exported | None:
        assert timeout_s == SETTINGS.format_wait_s
        self._questions -= 1
        return None if self._questions > 0 else self._result

    def stop(self) -> None:
        self.stopped = True


SETTINGS = ReleaseSettings()


def made(spec: ModelSpec, images: int = 40, **changes: Any) -> Candidate:
    """A candidate of a network, with its answers."""
    network, images_NHWC = built(spec), torch.from_numpy(images_of(spec, images))
    fields: dict[str, Any] = {
        "parameters": network.state_dict(),
        "model": spec,
        "evaluation": {"images": images_NHWC},
        "logits": network(images_NHWC).detach(),
    }
    return replace(candidate(0.0), **fields | changes)


@pytest.fixture(scope="module")
def exported() -> Exported:
    return export(built(SPEC), 12, 12, 3)


@pytest.fixture(scope="module")
def grown() -> Exported:
    return export(built(GROWN), 12, 12, 3)


def test_a_network_is_exported_once(exported: Exported) -> None:
    started: list[ModelSpec] = []

    def start(spec: ModelSpec) -> FakeExport:
        started.append(spec)
        return FakeExport(exported)

    formats = Formats(SETTINGS, None, start)
    assert [formats.onnx(made(SPEC)) for _ in range(3)] == [Onnx(exported.graph, [], 40)] * 3
    assert started == [SPEC]


def test_a_release_waits_no_longer_than_it_may(exported: Exported) -> None:
    export = FakeExport(exported, questions=3)
    formats = Formats(SETTINGS, None, lambda _: export)
    for _ in range(2):
        assert formats.onnx(made(SPEC)) == "the export takes longer than release.format_wait_s = 15"
    assert isinstance(formats.onnx(made(SPEC)), Onnx)


def test_a_network_that_grew_is_exported_again(exported: Exported) -> None:
    exports = [FakeExport(exported, questions=9), FakeExport(Exported(failure="a reason"))]
    formats = Formats(SETTINGS, None, lambda spec: exports[spec == GROWN])
    formats.onnx(made(SPEC))
    assert formats.onnx(made(GROWN)) == "a reason"
    assert [export.stopped for export in exports] == [True, False]


def never(spec: ModelSpec) -> FakeExport:
    raise AssertionError(f"{spec.name} was exported")


def test_a_restarted_worker_uses_the_last_release_s_graph(exported: Exported) -> None:
    formats = Formats(SETTINGS, (SPEC, exported), never)
    assert [formats.onnx(made(SPEC)) for _ in range(2)] == [Onnx(exported.graph, [], 40)] * 2


@pytest.mark.parametrize("spec", [SPEC, GROWN])
def test_a_released_graph_of_another_network_is_exported_again(
    exported: Exported, grown: Exported, spec: ModelSpec
) -> None:
    formats = Formats(SETTINGS, (spec, grown), lambda _: FakeExport(exported))
    assert formats.onnx(made(SPEC)) == Onnx(exported.graph, [], 40)


def test_a_released_graph_is_read_from_the_store(exported: Exported, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    run = FakeRun()
    manifest = run.publish(run.writer(), run.snapshot(released=True))
    assert manifest.release
    assert released_graph(store, None) is released_graph(store, manifest.release) is None
    graph = store.put(f"run/{1:012d}-{uuid.uuid4()}/{GRAPH}", exported.graph)
    onnx = OnnxGraph(published=Published(graph, []), unused=["name"], compared=40)
    release = msgspec.structs.replace(manifest.release, onnx=onnx)
    assert released_graph(store, release) == (release.model, Exported(exported.graph, ["name"]))
    store.delete([graph.key])
    assert released_graph(store, release) is None


def test_an_export_ends_with_the_worker(exported: Exported) -> None:
    export = FakeExport(exported, questions=9)
    formats = Formats(SETTINGS, None, lambda _: export)
    formats.onnx(made(SPEC))
    formats.close()
    assert export.stopped


def test_a_graph_that_computes_other_predictions_is_left_out(exported: Exported) -> None:
    formats = Formats(SETTINGS, None, lambda _: FakeExport(exported))
    good = made(SPEC)
    why = formats.onnx(replace(good, logits=-good.logits))
    assert isinstance(why, str)
    assert "ONNX Runtime and PyTorch disagree" in why
    assert formats.onnx(good) == Onnx(exported.graph, [], 40)


def test_a_graph_that_does_not_fit_is_left_out(exported: Exported) -> None:
    formats = Formats(SETTINGS, None, lambda _: FakeExport(exported))
    assert "cannot load the graph" in str(formats.onnx(made(GROWN)))


def test_there_may_be_no_test_images(exported: Exported) -> None:
    none = made(SPEC, images=0)
    assert Formats(SETTINGS, None, lambda _: FakeExport(exported)).onnx(none) == Onnx(exported.graph, [], 0)
    assert {name: array.shape for name, array in canary(none).items()} == {"images": (0, 12, 12, 3), "logits": (0, 2)}


def test_the_canary_is_a_bounded_part_of_the_test_images() -> None:
    for side, count in ((12, 16), (128, 5), (400, 1)):
        taken = canary(made(spec_of("mlp", side, classes=2)))
        assert len(taken["images"]) == len(taken["logits"]) == count
        assert count == 1 or taken["images"].nbytes <= MAX_BYTES
    few = made(SPEC, images=3)
    np.testing.assert_array_equal(canary(few)["logits"], few.logits.numpy())


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (SPEC, None),
        (spec_of("unknown"), "'unknown' is unknown"),
        (spec_of("exporting:cannot_be_exported"), "PyTorch cannot export the network"),
        (spec_of("exporting:ends_the_process"), "the export ended with code 1 before its result"),
    ],
    ids=["mlp", "unknown", "cannot be exported", "ends the process"],
)
def test_the_process(spec: ModelSpec, why: str | None) -> None:
    result = ExportProcess(spec).result(120)
    assert result
    assert (why or "None") in str(result.failure)
    assert bool(result.graph) == (why is None)
