"""The long form of `test_shards`: each strategy, optimizer, network, head and policy, for many batches."""

from typing import Any

import pytest
from shard_runs import Run, in_processes, shard_settings

from stream_learner.registry import AUGMENTATIONS, HEADS, MODELS, STRATEGIES, WEIGHTS

LONG = 200  # batches in which all that may happen happens
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
            found[f"{strategy}, {optimizer}"] = LONG, {"learning": learning, "release": RELEASE}
    for model in MODELS:
        side = 64 if model in LARGE else 16
        sections = {"model": {"name": model, "height": side, "width": side, "channels": 3}, "learning": LEARNING}
        found[model] = 8 if model in LARGE else 60 if model.startswith("resnet") else LONG, sections
    for head in HEADS:
        found[head] = LONG, {"model": {"name": "cnn", "head": head, "random_features": 50}, "release": RELEASE}
    found["policies"] = LONG, {"weights": POLICIES, "labels": {"min_records": 3}, "learning": LEARNING}
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
    one = Run(settings, count).on(1)
    if count == LONG:
        goes_back = "release" in sections and kind != "prototype"  # prototypes get no worse on these images
        assert one.events == {"undone", "drift"} | ({"rolled back"} if goes_back else set())
    alone = one.everything
    assert Run(settings, count).on(2).everything == alone
    assert Run(settings, count).on(4).everything == alone
    first, second = count // 3, 2 * count // 3
    moving = Run(settings, count).on(4, 0, first).on(2, first, second).on(1, second, count)
    assert moving.everything == alone


@pytest.mark.parametrize("model", ["mlp", "cnn", "resnet18_slim"])
def test_processes_learn_what_one_process_learns(model):
    sections = {"model": {"name": model, "height": 16, "width": 16, "channels": 3}, "learning": LEARNING}
    settings, count = shard_settings(**sections, release=RELEASE), 24
    alone = Run(settings, count).on(1, together=in_processes).everything
    assert Run(settings, count).on(4, together=in_processes).everything == alone
    moving = Run(settings, count).on(4, 0, 9, in_processes).on(2, 9, 16, in_processes).on(1, 16, count, in_processes)
    assert moving.everything == alone
