"""A learner of several shards learns the same bytes, whatever number of ranks carries the shards."""

from typing import Any

import pytest
from shard_runs import NAN, Run, shard_settings

AUGMENTED = {"augment": ["crop", "flip"], "average_decay": 0.9}
KINDS: dict[str, dict[str, Any]] = {
    "er_la, Muon": {"learning": {"strategy": "er_la", "on_drift": "boost"} | AUGMENTED},
    "finetune, Adam, dropout": {
        "model": {"name": "cnn"},
        "learning": {"strategy": "finetune", "optimizer": "adam", "precision": "bf16"},
        "prequential": {"share": 0.4},
    },
    "derpp, SGD, batch normalisation": {
        "model": {"name": "small_network:Normalised"},
        "learning": {"strategy": "derpp", "optimizer": "sgd", "steps_per_batch": 2} | AUGMENTED,
    },
    "er_ace, weights": {
        "learning": {"strategy": "er_ace"},
        "weights": {"policies": ["record", "class_balance", "recency", "novelty", "hardness"], "half_life_s": 20.0},
    },
    "mkd, roll-backs": {
        "learning": {"strategy": "mkd", "average_decay": 0.5, "learning_rate": 1.0},
        "release": {"patience": 1, "min_held_out": 1, "rule": "max_drop", "max_drop": 0.0},
        "labels": {"min_records": 3},
    },
    "ridge": {"model": {"head": "ridge"}},
}
BATCHES = 16


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_ranks_changes_nothing(kind):
    settings = shard_settings(**KINDS[kind])
    alone = Run(settings, BATCHES).on(1)
    moving = Run(settings, BATCHES).on(4, 0, 5).on(2, 5, NAN).on(1, NAN, BATCHES)
    assert moving.everything == alone.everything
    assert "undone" in alone.events
    assert ("rolled back" in alone.events) == ("roll-backs" in kind)
