"""The benchmarks of learning, as commands on a small data set."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from digit_folders import EACH, run
from PIL import Image
from rich.progress import Progress
from typer.testing import CliRunner

from benchmarks import incremental
from benchmarks.data import open_data
from benchmarks.exam import Exam
from benchmarks.learning import app
from benchmarks.scores import Point, accuracy, accuracy_of_seen
from benchmarks.trial import Trial
from stream_learner import networks as models
from stream_learner.contract.manifest import ModelArguments, ModelSpec
from stream_learner.errors import DataError, ExitCode
from stream_learner.registry import WEIGHTS


def test_increments_prints_scores_and_costs(digits: Path, tmp_path: Path):
    (er,) = run("increments", "--data", digits, "--strategy", "er", "--model", "mlp", "--runs", tmp_path, "--views", 2)
    assert er["images"] == 190  # of 200 5 % are for validation
    assert (er["steps"], er["views"]) == (38, 2 * 380 - 20)  # the first batch finds nothing to replay
    assert (er["teacher_views"], er["part"]) == (0, "test")
    assert er["seconds"] > 0
    assert 0 <= er["worst"] <= er["final"] <= 1
    assert 0.1 < er["anytime"] <= 1
    (file,) = tmp_path.glob("*.json")
    kept = json.loads(file.read_text())
    assert (kept["examined"], kept["settings"]["memory"]["max_items"]) == (40, 1000)
    curve = kept["curve"]
    assert [moment["records"] for moment in curve] == [30, 70, 110, 150, 190]
    assert np.mean([moment["accuracy"] for moment in curve]) == pytest.approx(er["anytime"])


def test_at_the_end_of_an_increment_the_model_is_asked_about_its_classes_and_no_later_ones(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked, take = [], Exam.take

    def spied(exam: Exam, model: Any, device: Any, classes: Any, sample: bool = False) -> Point:
        asked.append((len(classes), sample))
        return take(exam, model, device, classes, sample)

    monkeypatch.setattr(Exam, "take", spied)
    run("increments", "--data", digits, "--model", "mlp", "--strategy", "finetune", "--runs", tmp_path)
    assert [classes for classes, sample in asked if not sample] == [
        2,
        4,
        6,
        8,
        10,
    ]  # of 38 records each


def test_contenders_get_equal_views(digits: Path, tmp_path: Path):
    options = ("--data", digits, "--model", "mlp", "--runs", tmp_path, "--strategy", "er", "--strategy", "finetune")
    er, finetune = run("shuffled", *options)
    assert er["views"] + 10 == finetune["views"] == 2 * 190


def test_a_second_start_skips_what_is_there(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    options = ("increments", "--data", digits, "--model", "mlp", "--runs", tmp_path, "--strategy", "finetune")
    first = run(*options)
    made = []
    learn = incremental.learn
    monkeypatch.setattr(incremental, "learn", lambda *rest: made.append(rest) or learn(*rest))
    assert run(*options) == first
    assert not made
    again = run(*options, "--seed", 0, "--seed", 1, "--set", "learning.learning_rate=0.01")
    assert [one["seed"] for one in again] == [0, 1]
    assert len(made) == 2  # other settings are another run
    assert len(list(tmp_path.iterdir())) == 3


def test_a_second_start_says_where_its_figures_are_from(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    trial = Trial("shuffled", "finetune", 0, 1, "mlp", 10, None, True, ())
    data = open_data(digits)
    with Progress(disable=True) as progress:
        for said in ("", f"this run is finished; delete the file to run it again: {tmp_path}"):
            trial.once(tmp_path, data, progress)
            assert capsys.readouterr().err.startswith(said)


def test_too_few_classes_for_the_increments_are_told(tmp_path: Path):
    for part, label in itertools.product(("train", "test"), ("a", "b")):
        (tmp_path / part / label).mkdir(parents=True)
        for number in range(10):
            Image.new("L", (8, 8), number).save(tmp_path / part / label / f"{number}.png")
    arguments = ["increments", "--data", str(tmp_path), "--model", "mlp", "--runs", str(tmp_path / "runs")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == ExitCode.USAGE
    assert "error: 2 classes are too few for 5 increments; `shuffled` takes any number" in result.output
    result = CliRunner().invoke(app, ["retrain", "--classes", *arguments[1:]])
    assert "error: 2 classes are too few for 10 increments; leave --classes out" in result.output


def test_an_image_that_cannot_be_decoded_is_told_before_anything_is_learned(digits: Path, tmp_path: Path):
    shutil.copytree(digits, tmp_path / "digits")
    image = tmp_path / "digits" / "train" / "3" / "7.png"
    image.write_bytes(image.read_bytes()[:60])
    result = CliRunner().invoke(
        app, ["increments", "--data", str(tmp_path / "digits"), "--runs", str(tmp_path / "runs")]
    )
    assert result.exit_code == ExitCode.DATA
    assert "error: train/3/7.png in digits: " in result.output
    assert "remove it" in result.output


def test_a_record_that_the_learner_refuses_ends_the_run(digits: Path, tmp_path: Path):
    arguments = ["--data", str(digits), "--runs", str(tmp_path), "--model", "mlp", "--set", "model.max_classes=9"]
    result = CliRunner().invoke(app, ["shuffled", *arguments])
    assert result.exit_code == ExitCode.DATA
    assert "a benchmark learns every record" in result.output


def test_characters_are_not_mirrored(digits: Path):
    assert not open_data(None).mirrored
    assert open_data(digits).mirrored  # of folders called 0 to 9 nobody knows what is in them


@pytest.mark.parametrize(("budget", "more"), [(1, []), (2, ["color_jitter", "cutout"])])
def test_characters_are_varied_like_others_but_for_mirrors(budget: int, more: list[str], tmp_path: Path):
    options = ("--model", "mlp", "--strategy", "er", "--views", budget)
    run("shuffled", *options, "--runs", tmp_path / "runs")
    (file,) = (tmp_path / "runs").iterdir()
    assert json.loads(file.read_text())["settings"]["learning"]["augment"] == ["crop", *more]


def test_images_that_fill_no_batch_are_told(digits: Path, tmp_path: Path):
    for part, number in itertools.product(("train", "test"), range(5)):
        (tmp_path / "few" / part / str(number)).mkdir(parents=True)
        source = digits / part / str(number) / f"{number if part == 'train' else EACH - 1}.png"
        shutil.copy(source, tmp_path / "few" / part / str(number) / "1.png")
    result = CliRunner().invoke(app, ["shuffled", "--data", str(tmp_path / "few"), "--runs", str(tmp_path / "runs")])
    assert result.exit_code == ExitCode.DATA
    assert "error: the 5 training images of few do not fill a batch of 10" in result.output


def test_a_folder_without_runs_is_no_report(tmp_path: Path):
    result = CliRunner().invoke(app, ["report", "--runs", str(tmp_path), "--output", str(tmp_path / "out")])
    assert result.exit_code == ExitCode.DATA
    assert "there is no finished run in" in result.output


def test_a_run_that_diverges_is_none(digits: Path, tmp_path: Path):
    options = ("--data", digits, "--runs", tmp_path, "--model", "mlp", "--strategy", "finetune")
    sets = ("--set", "learning.learning_rate=1e30", "--set", "learning.optimizer=sgd")
    result = CliRunner().invoke(app, ["shuffled", *map(str, options), *sets])
    assert result.exit_code == ExitCode.DIVERGED
    assert "lower learning.learning_rate" in result.output
    assert not list(tmp_path.iterdir())


def test_a_run_is_known_by_its_images(digits: Path, tmp_path: Path):
    options = ("--model", "mlp", "--strategy", "finetune", "--runs", tmp_path / "runs")
    (first,) = run("shuffled", "--data", digits, *options)
    assert (first["images"], first["examined"]) == (190, 40)
    other = tmp_path / "other" / digits.name
    shutil.copytree(digits, other)
    (other / "test" / "3" / "20.png").unlink()
    (second,) = run("shuffled", "--data", other, *options)
    assert (second["images"], second["examined"]) == (190, 39)
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_what_a_drift_changes_makes_another_run(digits: Path, tmp_path: Path):
    options = ("--data", digits, "--model", "mlp", "--strategy", "finetune", "--runs", tmp_path)
    for rate in (1.5, 3):
        run("drifting", *options, "--set", "learning.on_drift=boost", "--set", f"drift.boost_learning_rate={rate}")
    kept = [json.loads(file.read_text()) for file in tmp_path.iterdir()]
    assert sorted(made["settings"]["drift"]["boost_learning_rate"] for made in kept) == [1.5, 3]
    assert all(made["arithmetic"]["threads"] >= 1 for made in kept)


def test_without_a_test_part_a_sixth_of_each_class_is_it(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data = open_data(digits / "train")
    assert (len(data.train.images), len(data.test.images)) == (170, 30)
    assert "there is no test split in" in capsys.readouterr().err
    shutil.copytree(digits, tmp_path / "digits")
    for file in (tmp_path / "digits" / "test").glob("*/*"):
        file.write_bytes(b"damaged")
    with pytest.raises(DataError, match="40 faults"):  # and no other part takes its place
        open_data(tmp_path / "digits")


def test_classes_without_test_images_are_left_out_of_what_is_said_along_the_way(digits: Path, tmp_path: Path):
    shutil.copytree(digits, tmp_path / "digits")
    for label in range(1, 10):
        shutil.rmtree(tmp_path / "digits" / "test" / str(label))
    options = ("--data", tmp_path / "digits", "--model", "mlp", "--strategy", "er", "--runs", tmp_path / "runs")
    for seed in range(3):  # in one of them the class comes late
        (one,) = run("increments", *options, "--seed", seed)
        assert one["examined"] == 4
        assert 0 <= one["anytime"] <= 1


def test_a_class_that_was_not_seen_counts_as_not_known():
    pixels_NHWC, targets = np.zeros((20, 8, 8, 1), np.uint8), np.arange(20) % 10
    arguments = ModelArguments(classes=1, height=8, width=8, channels=1, mean=[0.5], std=[0.25])
    only_three = models.build(ModelSpec("mlp", arguments))
    point = Exam(pixels_NHWC, targets).take(only_three, torch.device("cpu"), [3])
    assert accuracy(point) == 0.1
    assert accuracy_of_seen(point) == 1


def test_one_seed_gives_one_result(digits: Path, tmp_path: Path):
    def scores(runs: str, seed: int) -> tuple[float, ...]:
        options = ("--data", digits, "--model", "mlp", "--runs", tmp_path / runs, "--validation")
        (one,) = run("blurry", *options, "--seed", seed)
        assert (one["part"], one["examined"]) == ("validation", 10)  # 5 % of the training images, not the 40 of test
        return one["final"], one["anytime"], one["worst"]

    assert scores("first", 3) == scores("second", 3)
    assert scores("first", 3) != scores("first", 4)


def test_novelty_has_a_last_release_to_look_at(digits: Path, tmp_path: Path):
    options = ("shuffled", "--data", digits, "--model", "mlp", "--runs", tmp_path, "--set", "release.every_records=60")
    (without,) = run(*options, "--set", "weights.policies=[]")
    (novelty,) = run(*options, "--set", "weights.policies=['novelty']")
    assert without["teacher_views"] == 0
    assert novelty["teacher_views"] == 190 - 60  # the stream's, from the first release on
    assert novelty["views"] == without["views"]


def test_an_unknown_strategy_ends_with_a_hint(digits: Path, tmp_path: Path):
    arguments = ["increments", "--data", digits, "--model", "mlp", "--runs", tmp_path, "--strategy", "err"]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == ExitCode.USAGE
    assert "did you mean er?" in result.output


def test_views_are_counted_apart_from_forwards():
    model = models.build(ModelSpec("mlp", ModelArguments(classes=2, height=8, width=8, channels=1, mean=[0], std=[1])))
    images = torch.zeros(5, 8, 8, 1, dtype=torch.uint8)
    with incremental.counted() as count:
        model(images)
        with torch.no_grad():
            model(images[:3])
    model(images)
    assert (count.views, count.forwards) == (5, 3)


def test_the_ablation_tries_every_policy_on_every_scenario(digits: Path, tmp_path: Path):
    found = run("ablation", "--data", digits, "--model", "mlp", "--runs", tmp_path)
    tried = {(one["benchmark"], one["overrides"][-1]) for one in found}
    policies = ["[]", *(f"['{policy}']" for policy in WEIGHTS)]
    assert tried == {
        (name, f"weights.policies={policy}") for name in ("noisy", "imbalanced", "drifting") for policy in policies
    }
