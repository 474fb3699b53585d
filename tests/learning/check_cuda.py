"""Checks on a machine with one or more GPUs. Without a GPU, they end with exit code 77, and nothing is checked."""

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from shard_runs import Run, in_processes, shard_settings
from torch import Tensor
from torch.nn import functional

from benchmarks.performance import inputs, memory, worker
from benchmarks.performance.rounds import TOPIC, Subject, console
from stream_learner import config, networks
from stream_learner.config import Settings
from stream_learner.errors import ExitCode, StreamLearnerError
from stream_learner.learning.learner import Learner
from stream_learner.learning.placement import filled, place
from stream_learner.learning.process import set_up_torch
from stream_learner.learning.spec import spec_of
from stream_learner.registry import AUGMENTATIONS, STRATEGIES

NO_GPU = 77  # the exit code of a skipped test for GNU Automake
COUNT = 24
DEADLINE_S = 90.0
SIDE_PX, BATCH, RECORDS = 64, 128, 200_000
on_gpus = partial(in_processes, device="cuda")
ALL = {"augment": list(AUGMENTATIONS), "average_decay": 0.9}


@pytest.fixture(scope="session", autouse=True)
def gpu() -> None:
    """End the session without a GPU."""
    if not torch.cuda.is_available():
        pytest.exit("this machine has no GPU that PyTorch can use; nothing was checked", NO_GPU)
    set_up_torch(shard_settings())


def settings_of(model: str, **learning: Any) -> Settings:
    sections = {"model": {"name": model, "height": 16, "width": 16, "channels": 3}}
    return shard_settings(**sections, learning=ALL | {"device": "cuda"} | learning)


@pytest.mark.parametrize("model", ["mlp", "cnn", "rnn", "resnet18_slim"])
def test_a_learner_resumes_with_equal_bytes(model: str):
    settings = settings_of(model, precision="bf16")
    straight = Run(settings, COUNT).on(1).everything
    assert Run(settings, COUNT).on(1).everything == straight
    assert Run(settings, COUNT).on(1, 0, 9).on(1, 9).everything == straight


@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_no_operation_adds_in_an_order_that_varies(strategy: str):
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            Run(settings_of("resnet18_slim", strategy=strategy), COUNT).on(1)
            Run(settings_of("cnn", strategy=strategy, optimizer="adam"), COUNT).on(1)
    finally:
        torch.use_deterministic_algorithms(False)
    # cuBLAS varies only between streams, and the learner computes on one.
    varying = {str(one.message) for one in found if "determinis" in str(one.message)}
    assert not {message for message in varying if "CuBLAS" not in message}


def test_convolutional_networks_use_bf16_and_channels_last():
    settings = config.load(None, ["run.id=gpu", "input.topics=['images']", "model.name=resnet18_slim"])
    placement = place(settings.learning, networks.factory("resnet18_slim"))
    learner = Learner(settings)
    assert placement.device.type == "cuda"
    assert (placement.autocast, learner.arithmetic.precision) == (True, "bf16")
    kernel = next(p for p in learner.network.parameters() if p.ndim == 4 and p.shape[1] > 1)
    assert kernel.is_contiguous(memory_format=torch.channels_last)


def test_a_copy_from_pinned_memory_ends_beside_a_computation():
    """The worker copies on the stream on which it computes. This shows whether a stream for copies would help here."""
    images, matrix = torch.empty(2**26, dtype=torch.uint8, pin_memory=True), torch.randn(8192, 8192, device="cuda")
    began, copied, computed = (torch.cuda.Event(enable_timing=True) for _ in range(3))
    copies = torch.cuda.Stream()
    for _ in range(2):  # the first turn allocates memory and loads kernels
        torch.cuda.synchronize()
        began.record()
        for _ in range(20):
            torch.mm(matrix, matrix)
        computed.record()
        with torch.cuda.stream(copies):
            images.to("cuda", non_blocking=True)
            copied.record(copies)
        torch.cuda.synchronize()
    assert began.elapsed_time(copied) < began.elapsed_time(computed)


def test_pinned_memory_is_used_again_only_after_its_copy():
    matrix, cuda = torch.randn(8192, 8192, device="cuda"), torch.device("cuda")
    found = []
    for value in range(20):
        for _ in range(20):  # the copy waits for these
            torch.mm(matrix, matrix)
        found.append(filled((2**24,), lambda out, value=value: out.fill(value), cuda))
    assert [one.unique().tolist() for one in found] == [[value] for value in range(20)]


@pytest.fixture
def two_gpus() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("this needs two GPUs, because NCCL refuses two ranks on one")


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("model", ["cnn", "resnet18_slim"])
def test_two_ranks_learn_what_one_learns(model: str):
    settings = settings_of(model)
    alone = Run(settings, COUNT).on(1, together=on_gpus).everything
    assert Run(settings, COUNT).on(2, together=on_gpus).everything == alone
    assert Run(settings, COUNT).on(2, 0, 9, on_gpus).on(1, 9, COUNT, on_gpus).everything == alone


@pytest.mark.usefixtures("two_gpus")
def test_a_rank_that_is_killed_ends_the_gang(tmp_path: Path):
    program = str(Path(__file__).parents[1] / "run" / "joined_rank.py")
    command = [sys.executable, program, "2", str(tmp_path), "cuda"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as launcher:
        deadline, pids = time.monotonic() + DEADLINE_S, [tmp_path / f"pid{rank}" for rank in (0, 1)]
        while not all(pid.exists() for pid in pids):
            assert launcher.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(int(pids[1].read_text()), signal.SIGKILL)
        launcher.communicate(timeout=DEADLINE_S)
    assert launcher.returncode == ExitCode.RANK
    assert not Path(f"/proc/{int(pids[0].read_text())}").exists()


def _bare_steps(subject: Subject) -> Iterator[int]:
    """Train on one batch that stays on the GPU. Yield its size when the GPU is done."""
    settings = config.load(None, subject.overrides())
    model: Any = networks.build(spec_of(settings.model, 10))
    model.to("cuda", memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    images_NHWC = torch.randint(256, (subject.batch, *subject.size), dtype=torch.uint8, device="cuda")
    labels = torch.randint(10, (subject.batch,), device="cuda")
    while True:
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            logits: Tensor = model(images_NHWC)
            loss = functional.cross_entropy(logits.float(), labels)
        loss.backward()
        optimizer.step()
        float(loss.detach())
        yield subject.batch


@pytest.mark.parametrize("model", ["resnet18_slim", "resnet18"])
def test_the_figures_of_the_limit_and_the_worker_are_shown(model: str):
    subject = Subject("gpu", model, "jpeg64", BATCH, (SIDE_PX, SIDE_PX, 3))
    examples = inputs.jpegs(SIDE_PX, 2000)
    steps = _bare_steps(subject)
    for _ in range(20):
        next(steps)
    began, records = time.monotonic(), sum(islice(steps, 100))
    figures = {"limit": records / (time.monotonic() - began)}
    for name, overrides in (("plain", memory.plain()), ("default", [])):
        figures[f"in memory, {name}"] = memory.measure(subject, overrides, examples).records_per_s
    try:
        with ExitStack() as stack:
            broker = inputs.Topics(stack).fill(TOPIC, examples, RECORDS)
            for name, overrides in (("plain", memory.plain()), ("default", [])):
                found = worker.measure(subject, overrides, broker, records=RECORDS)
                figures[f"worker, {name}"] = found.records_per_s
    except StreamLearnerError as error:
        console.print(f"no figures from Kafka: {error}")
    for name, rate in figures.items():
        console.print(f"{torch.cuda.get_device_name()}, {model}, batch {BATCH}: {name}: {rate:,.0f} records/s")
