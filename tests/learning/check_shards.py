"""The long form of `test_shards`: each strategy, optimizer, network, head and policy, for many batches."""

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch
from command_line import processes
from shard_runs import Run, shard_settings

from stream_learner.learning.parallel import Parallel
from stream_learner.learning.process import set_up_torch
from stream_learner.learning.ranks import Ranks, join_group
from stream_learner.registry import AUGMENTATIONS, HEADS, MODELS, STRATEGIES, WEIGHTS

LARGE = {"resnet18", "resnet50"}  # a step takes a second
LEARNING = {"augment": list(AUGMENTATIONS), "average_decay": 0.9, "on_drift": "boost"}
RELEASE = {"patience": 2, "min_held_out": 1, "rule": "max_drop", "max_drop": 0.0}
POLICIES = {"policies": list(WEIGHTS), "half_life_records": 100.0}


def kinds() -> dict[str, tuple[int, dict[str, Any]]]:
    """Return the number of batches and the settings of each run, by name."""
    found: dict[str, tuple[int, dict[str, Any]]] = {}
    for strategy in STRATEGIES:
        for optimizer in ("muon", "adam", "sgd"):
            learning = LEARNING | {"strategy": strategy, "optimizer": optimizer}
            found[f"{strategy}, {optimizer}"] = 200, {"learning": learning, "release": RELEASE}
    for model in MODELS:
        side = 64 if model in LARGE else 16
        sections = {"model": {"name": model, "height": side, "width": side, "channels": 3}, "learning": LEARNING}
        found[model] = 8 if model in LARGE else 60 if model.startswith("resnet") else 200, sections
    for head in HEADS:
        found[head] = 200, {"model": {"name": "cnn", "head": head, "random_features": 50}, "release": RELEASE}
    found["policies"] = 200, {"weights": POLICIES, "labels": {"min_records": 3}, "learning": LEARNING}
    found["bf16, two steps"] = (
        60,
        {
            "model": {"name": "small_network:Normalised"},
            "learning": LEARNING | {"precision": "bf16", "steps_per_batch": 2},
        },
    )
    return found


@pytest.mark.parametrize("kind", kinds())
def test_the_number_of_ranks_changes_nothing(kind):
    count, sections = kinds()[kind]
    settings = shard_settings(**sections)
    alone = Run(settings, count).on(1).everything
    assert Run(settings, count).on(2).everything == alone
    assert Run(settings, count).on(4).everything == alone
    first, second = count // 3, 2 * count // 3
    moving = Run(settings, count).on(4, 0, first).on(2, first, second).on(1, second, count)
    assert moving.everything == alone


def in_processes(shards: int, ranks: int, work: Callable[[Parallel], Any]) -> list[Any]:
    """Return what `work` returns on each rank. Each rank is a process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    pipes = [processes.Pipe() for _ in range(ranks)]
    for rank, (_, theirs) in enumerate(pipes):
        processes.Process(target=_process, args=(shards, rank, ranks, port, work, theirs), daemon=True).start()
        theirs.close()
    found = [ours.recv() for ours, _ in pipes]
    for ours, _ in pipes:
        ours.close()
    return found


def _process(
    shards: int, rank: int, ranks: int, port: int, work: Callable[[Parallel], Any], parent: Connection
) -> None:
    set_up_torch(shard_settings())
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    join_group(rank, ranks, rank, "cpu", None, 120.0)
    parent.send(work(Ranks(shards, rank, ranks)))
    with suppress(EOFError):
        parent.recv()  # the other ranks may need this one until all have sent
    os._exit(0)


@pytest.mark.parametrize("model", ["mlp", "cnn", "resnet18_slim"])
def test_processes_learn_what_one_process_learns(model):
    sections = {"model": {"name": model, "height": 16, "width": 16, "channels": 3}, "learning": LEARNING}
    settings, count = shard_settings(**sections, release=RELEASE), 24
    alone = Run(settings, count).on(1, together=in_processes).everything
    assert Run(settings, count).on(4, together=in_processes).everything == alone
    moving = Run(settings, count).on(4, 0, 9, in_processes).on(2, 9, 16, in_processes).on(1, 16, count, in_processes)
    assert moving.everything == alone
