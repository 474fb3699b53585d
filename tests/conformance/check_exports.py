"""Every network that a worker can learn exports as an ONNX graph, and ONNX Runtime computes the same as PyTorch.

`make test` does not collect this file. `make conformance` runs it. Each export is a process, as in a worker.
"""

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from exporting import built, images_of, spec_of
from harness import POLL_S

from stream_learner import Learner
from stream_learner.contract.manifest import ModelSpec
from stream_learner.inference.agreement import disagreement
from stream_learner.inference.onnx import OnnxModel
from stream_learner.networks.onnx_export import Exported
from stream_learner.networks.tensors import as_arrays
from stream_learner.publishing.formats import EXPORTER, Formats, Onnx
from stream_learner.registry import HEADS, MODELS
from stream_learner.testing.small_run import small_settings, small_stream

SIDE = 12
SIDES = {"resnet18": 33, "resnet50": 33, "timm:test_vit": 32, "timm:test_resnet": 33, "timm:mobilenetv3_small_050": 64}
"""Of the networks that need larger images."""
TIMM = [name for name in SIDES if name.startswith("timm:")]
PEAK = re.compile(r"VmHWM:\s+(\d+) kB")
# Batches of `small_stream` after which two classes have only held-out samples, and all batches.
DECISIONS = (6, 9)


def exported(spec: ModelSpec, folder: Path) -> tuple[Exported, float, int]:
    """Export a network as a worker does. Return the result, the seconds and the peak memory in MiB."""
    question, answer, peak_mib = folder / "question", folder / "answer", 0
    question.write_bytes(msgspec.json.encode(spec))
    began = time.monotonic()
    with question.open("rb") as given, answer.open("wb") as made:
        process = subprocess.Popen(
            [sys.executable, "-m", EXPORTER], stdin=given, stdout=made, stderr=subprocess.DEVNULL
        )
        while process.poll() is None:
            if found := PEAK.search(Path(f"/proc/{process.pid}/status").read_text()):
                peak_mib = int(found[1]) // 1024
            time.sleep(POLL_S)
    assert process.returncode == 0
    result = msgspec.msgpack.decode(answer.read_bytes(), type=Exported)
    return result, time.monotonic() - began, peak_mib


@pytest.mark.parametrize("name", [*MODELS, *TIMM])
def test_a_network(name: str, tmp_path: Path, show: Callable[[str], None]) -> None:
    spec = spec_of(name, SIDES.get(name, SIDE))
    made, seconds, peak_mib = exported(spec, tmp_path)
    assert made.failure is None
    network = built(spec)
    model = OnnxModel(made.graph, as_arrays(network.state_dict()), made.unused)
    for count in (1, 2, 33):
        images_NHWC = images_of(spec, count)
        with torch.inference_mode():
            expected = network(torch.from_numpy(images_NHWC)).numpy()
        assert disagreement(model(images_NHWC)[0], expected) is None
    show(f"{name}: {seconds:.1f} s, {peak_mib} MiB, graph of {len(made.graph) / 1024:.0f} KiB")


@pytest.mark.parametrize("head", [name for name in HEADS if name != "linear"])
def test_a_solved_head(head: str) -> None:
    """With classes that have no training samples, too: their outputs are silent."""
    settings = small_settings(model={"head": head, "random_features": 20}, release={"format_wait_s": 600.0})
    learner, formats = Learner(settings), Formats(settings.release)
    for number, samples in enumerate(small_stream(settings.model), 1):
        learner.learn(samples)
        if number in DECISIONS:
            candidate = learner.decide().candidate
            made = formats.onnx(candidate)
            assert isinstance(made, Onnx), made
            assert made.compared == len(candidate.evaluation["images"]) > 0
