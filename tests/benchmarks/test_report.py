import json
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from benchmarks import report, runs
from stream_learner.errors import DataError


def made_up(strategy: str, seed: int, final: float, **rest: Any) -> runs.Run:
    curve = [{"records": 100 * k, "views": 200 * k, "seconds": k, "accuracy": final} for k in (1, 2)]
    asked = {
        "benchmark": "increments",
        "data": "shapes",
        "model": "mlp",
        "part": "test",
        "through": "memory",
        "digest": "0",
    }
    scores = {"final": final, "anytime": final + 0.1, "worst": 0.0, "last_100_steps": {"std": 0.02}, "curve": curve}
    costs = {"views": 400, "teacher_views": 7, "evaluation_views": 1, "seconds": 2.0}
    named = {"strategy": strategy, "budget": 1, "seed": seed, "overrides": [], "settings": {}}
    return asked | scores | costs | named | rest


def write(folder: Path, *found: runs.Run) -> None:
    folder.mkdir(exist_ok=True)
    for number, run in enumerate(found):
        (folder / f"{number}.json").write_text(json.dumps(run))


def test_means_and_paired_differences(tmp_path: Path):
    default, er = (0.70, 0.72, 0.77), (0.60, 0.60, 0.66)
    found = [made_up("default", s, final) for s, final in enumerate(default)]
    found += [made_up("er", s, final) for s, final in enumerate(er)]
    found.append(made_up("er", 9, 0.1, part="validation"))
    write(tmp_path / "runs", *found)
    files = report.write(tmp_path / "runs", tmp_path / "out")
    test, validation = json.loads((tmp_path / "out" / "learning.json").read_text())
    best, second = test["contenders"]
    assert (best["contender"], best["seeds"], second["contender"]) == ("default 1x", [0, 1, 2], "er 1x")
    assert best["final"]["mean"] == pytest.approx(0.73)
    assert best["final"]["std"] == pytest.approx(0.0360555)
    assert "default_minus_this" not in best
    gain = second["default_minus_this"]
    expected = stats.ttest_rel(default, er).confidence_interval(0.95)
    assert gain["mean"] == pytest.approx(0.11)
    assert gain["interval"] == pytest.approx([expected.low, expected.high])
    assert (validation["part"], len(validation["contenders"])) == ("validation", 1)
    page = (tmp_path / "out" / "learning.md").read_text()
    assert "| default 1x | 3 | 73.0 ± 3.6 | 83.0 ± 3.6 | 0.0 ± 0.0 | 2.0 | 400 | 7 | 1 | 2 |  |" in page
    assert "| +11.0 [+8.5, +13.5] |" in page
    plots = [file for file in files if file.suffix == ".png"]
    assert [plot.name for plot in plots] == ["increments-shapes-mlp-test.png"]
    assert plots[0].read_bytes().startswith(b"\x89PNG")
    assert plots[0].name in page


def test_a_contender_is_called_by_its_settings_and_paired_with_the_defaults_seeds(tmp_path: Path):
    reference = [made_up("avalanche er_ace", seed, 0.5, overrides=["lr=0.1", "fp32"]) for seed in (0, 1)]
    write(tmp_path / "runs", made_up("default", 0, 0.7), *reference)
    (group,) = report.grouped(runs.read_all(tmp_path / "runs"))
    _, reference = report.table(group)
    assert reference["contender"] == "avalanche er_ace 1x lr=0.1 fp32"
    assert reference["seeds"] == [0, 1]
    assert reference["default_minus_this"] == {"mean": pytest.approx(0.2), "interval": None}
    assert "+20.0 |" in report.markdown([reference])


def test_two_data_sets_of_one_name_are_told():
    with pytest.raises(DataError, match="two data sets named shapes"):
        report.grouped([made_up("default", 0, 0.7), made_up("er", 0, 0.7, digest="1")])


def test_what_a_run_does_not_tell_is_left_empty():
    through_kafka = made_up("default", 0, 0.7, through="kafka", anytime=None, worst=None, last_100_steps=None)
    (group,) = report.grouped([made_up("default", 0, 0.7), through_kafka])
    row = report.table(group)[1]
    assert row["default_minus_this"]["mean"] == 0
    assert report.cells(row)[:6] == ("default 1x through Kafka", "1", "70.0", "", "", "")


def test_retraining_is_compared_with_the_default_of_the_least_budget():
    found = [made_up("retrain", 0, 0.8, budget=10), made_up("default", 0, 0.7, budget=10)]
    (group,) = report.grouped([*found, made_up("default", 0, 0.75, budget=4)])
    rows = {row["contender"]: row.get("default_minus_this", {}).get("mean") for row in report.table(group)}
    assert rows == {
        "retrain": pytest.approx(-0.05),
        "default 4x": None,
        "default 10x": pytest.approx(0.05),
    }


def test_two_runs_of_one_seed_are_refused():
    with pytest.raises(DataError, match="two runs of er 1x, seed 0"):
        report.grouped([made_up("er", 0, 0.5), made_up("er", 0, 0.6, images=3)])


def test_no_half_of_a_run_is_left(tmp_path: Path):
    asked = made_up("er", 0, 0.5)

    def cut_off() -> runs.Run:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.once(tmp_path, "er", asked, cut_off)
    assert runs.read_all(tmp_path) == []
    assert runs.once(tmp_path, "er", asked, lambda: {"final": 1.0}) == asked | {"final": 1.0}
    assert runs.read_all(tmp_path) == [asked | {"final": 1.0}]
