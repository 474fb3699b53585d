"""Retraining from scratch, which the increments are compared with."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from digit_folders import run
from typer.testing import CliRunner

from benchmarks import retraining
from benchmarks.exam import Exam
from benchmarks.learning import app
from benchmarks.scores import Point
from stream_learner import config
from stream_learner import networks as models
from stream_learner.learning.placement import place


def test_retraining_is_measured_beside_increments(digits: Path, tmp_path: Path):
    arguments = [
        "retrain",
        "--data",
        digits,
        "--model",
        "mlp",
        "--runs",
        tmp_path,
        "--set",
        "learning.augment=['crop']",
        "--views",
        1,
    ]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert "Increment 10: 160 images, 10 classes" in lines  # the open batch of 32 is left out
    epochs = [line for line in lines if line.startswith("Epoch ")]
    retrained, incremented = (json.loads(line) for line in lines if line.startswith("{"))
    assert len(epochs) > 10
    assert epochs[0].startswith("Epoch 1 - Train Loss: ")
    assert ", Test Acc: " in epochs[0]
    assert retrained["views"] > 5 * incremented["views"]
    assert incremented["views"] == 2 * 160 - 32


def test_retraining_and_increments_vary_images_alike(digits: Path, tmp_path: Path):
    retrained, incremented = run("retrain", "--data", digits, "--model", "mlp", "--runs", tmp_path, "--views", 2)
    assert incremented["views"] == 2 * (2 * 160 - 32)
    assert retrained["strategy"] == "retrain"
    settings = [json.loads(file.read_text())["settings"] for file in tmp_path.glob("*.json")]
    assert [used["learning"]["augment"] for used in settings] == [["crop", "flip"]] * 2
    assert [used["memory"]["max_items"] for used in settings if "memory" in used] == [16]  # a tenth of 160


class Scripted(Exam):
    """Gives these accuracies, in %, one after the other, and keeps what it has examined."""

    def __init__(self, *accuracies: int):
        self.accuracies = list(accuracies)
        self.examined: list[dict[str, torch.Tensor]] = []

    def take(self, model: torch.nn.Module, *_: Any, **__: Any) -> Point:
        self.examined.append(copy.deepcopy(model.state_dict()))
        return Point(np.array([self.accuracies.pop(0)]), np.array([100]), np.array([True]))


def test_retraining_stops_and_chooses_by_validation_images():
    settings = config.load(
        None, ["run.id=a", "input.topics=['a']", "model.name=mlp", "model.height=8", "model.width=8"]
    )
    placement = place(settings.learning, models.factory("mlp"))
    pixels_NHWC = torch.zeros(40, 8, 8, 3, dtype=torch.uint8)
    test, validation = Scripted(10, 20, 30, 40), Scripted(90, 80, 70)
    trained = retraining.train(
        settings, placement, pixels_NHWC, torch.zeros(40, dtype=torch.int64), [0], test, validation, print, print
    )
    assert trained["views"] == 3 * 40
    first, *_, chosen = test.examined
    assert all(torch.equal(chosen[name], tensor) for name, tensor in first.items())


def test_retraining_goes_on_where_it_was_stopped(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    options = ("--data", digits, "--model", "mlp", "--strategy", "retrain", "--runs")
    (whole,) = run("retrain", *options, tmp_path / "whole")
    trained: list[int] = []
    train = retraining.train

    def stops_once(*arguments: Any) -> retraining.Trained:
        if len(trained) == 3:
            trained.append(0)
            raise KeyboardInterrupt
        trained.append(len(arguments[2]))
        return train(*arguments)

    monkeypatch.setattr(retraining, "train", stops_once)
    stopped = CliRunner().invoke(app, ["retrain", *map(str, options), str(tmp_path / "parts")])
    assert stopped.exit_code != 0
    (in_parts,) = run("retrain", *options, tmp_path / "parts")
    assert (trained.index(0), len(trained)) == (3, 11)
    assert trained[4] > trained[2]
    for figure in ("final", "anytime", "views", "steps", "evaluation_views"):
        assert in_parts[figure] == whole[figure]
    assert [file.suffix for file in (tmp_path / "parts").iterdir()] == [".json"]
