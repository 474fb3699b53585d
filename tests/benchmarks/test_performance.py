import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from busy import beside
from PIL import Image

from benchmarks.loops import training
from benchmarks.observation import Measurement
from benchmarks.performance import cpu, goals, growth, inputs, report, rounds
from benchmarks.performance.rounds import Subject
from benchmarks.runs import Run
from stream_learner import config, networks
from stream_learner.errors import DataError
from stream_learner.formats import images
from stream_learner.learning.spec import spec_of

SUBJECT = Subject("loops", "cnn", "shapes", 32, (28, 28, 1))


def test_sides_take_turns_and_finished_rounds_are_not_run_again(tmp_path: Path):
    turns = []

    def sides():
        def side(name: str):
            def turn() -> Measurement:
                turns.append(name)
                return Measurement(1000.0, 0.1, 1.0, 0.0)

            return turn

        return {name: side(name) for name in "abc"}

    for number in range(2):
        rounds.run(SUBJECT, sides, number, tmp_path)
    assert "".join(turns) == "abccba"
    for number in range(3):
        rounds.run(SUBJECT, sides, number, tmp_path)
    assert "".join(turns) == "abccbaabc"
    found = rounds.finished("loops", tmp_path)
    assert [list(round_["measured"]) for round_ in found[SUBJECT]] == [["a", "b", "c"]] * 3
    assert not rounds.finished("kafka", tmp_path)


def test_a_busy_process_elsewhere_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as observer:
            disturbed = observer.submit(beside, busy.pid).result()
    finally:
        busy.kill()
        busy.wait()
    cores = disturbed.records_per_s * disturbed.cpu_s_per_1000_records / 1000  # that the busy process used
    assert disturbed.cores_elsewhere > max(0.5 * cores, rounds.QUIET_CORES)

    quiet = disturbed._replace(cores_elsewhere=rounds.QUIET_CORES)
    for number, found in enumerate((quiet, disturbed)):
        (tmp_path / "docs").mkdir(exist_ok=True)
        rounds.run(
            SUBJECT._replace(part="limit"), lambda found=found: {"worker": lambda: found}, number, tmp_path / "runs"
        )
        text = report.write(tmp_path / "docs", tmp_path / "runs")[0].read_text()
        warning = f"Other programs kept up to {disturbed.cores_elsewhere:.2f} cores busy"
        assert (warning in text) == ("unreliable" in capsys.readouterr().out) == (found is disturbed)


def test_ratios_compare_rates_of_one_round(tmp_path: Path):
    rates = iter([(9000, 3000, 1000), (6000, 1000, 2000), (2000, 1000, 500)])

    def sides():
        names = ("worker", "kafka-python", "DataLoader")
        return {
            name: lambda rate=rate: Measurement(float(rate), 0.1, 1.0, 0.0)
            for name, rate in zip(names, next(rates), strict=True)
        }

    for number in range(3):
        rounds.run(SUBJECT, sides, number, tmp_path / "runs")
    (tmp_path / "docs").mkdir()
    page, plot = report.write(tmp_path / "docs", tmp_path / "runs")
    text = page.read_text()
    assert "| worker | 6,000 (2,000-9,000) | 166.7 | 0.100 |" in text
    assert "| worker / kafka-python | 3.00 (2.00-6.00) |" in text
    assert "| worker / the fastest loop of the round | 3.00 (2.00-3.00) |" in text
    assert "the worker is 3.00 (2.00-3.00) times as fast as the fastest loop" in text
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert plot.name in text


def test_the_cost_of_a_save_is_its_stall_and_the_time_that_publishing_takes_from_the_batches(tmp_path: Path):
    saved = Measurement(1000.0, 0.1, 1.0, 0.0)._asdict() | {
        "stalls_ms": [10.0, 20.0, 30.0],
        "idle": {"batches": 9, "mean_ms": 2.0, "p99_ms": 3.0},
        "publishing": {"batches": 9, "mean_ms": 2.5, "p99_ms": 3.0},
        "seconds_per_save": 1.0,
        "records_per_save": 1000.0,
        "commit_s": 0.2,
        "state_bytes": 2.0**20,
        "memory_bytes": 0.0,
        "written_bytes_per_save": 2.0**20,
        "start_to_monitoring_s": 1.0,
        "start_to_input_s": 2.0,
        "start_to_first_step_s": 3.0,
    }
    sides = {"without saves": lambda: Measurement(2000.0, 0.1, 1.0, 0.0), "with saves": lambda: saved}
    rounds.run(SUBJECT._replace(part="checkpoints"), lambda: sides, 0, tmp_path / "runs")
    (tmp_path / "docs").mkdir()
    text = report.write(tmp_path / "docs", tmp_path / "runs")[0].read_text()
    assert "| cnn | 1.0 | 2.0 | 20.0 | 29.8 | 30.0 | 3 | 60 | 0.20 | 0.00 |" in text
    assert "| cnn | 2,000 | 1,000 | 0.500 | 1.0 |" in text
    assert "a save stops the training thread for 20.0 ms (p99 29.8 ms)" in text


def test_two_ranks_are_compared_with_one_and_with_two_threads(tmp_path: Path):
    def side(records_per_s: float, collectives_ms: float, sent_bytes: float):
        return lambda: (
            Measurement(records_per_s, 0.1, 2.0**20, 0.0)._asdict()
            | {
                "step_ms": 32e3 / records_per_s,
                "collectives_ms_per_step": collectives_ms,
                "sent_bytes_per_step": sent_bytes,
            }
        )

    sides = {"1 rank": side(1000, 0, 0), "2 ranks": side(1600, 5.0, 4.4e6), "2 threads": side(2000, 0, 0)}
    subject = SUBJECT._replace(part="ranks from Kafka")
    rounds.run(subject, lambda: sides, 0, tmp_path / "runs")
    (tmp_path / "docs").mkdir()
    page, plot = report.write(tmp_path / "docs", tmp_path / "runs")
    assert plot.name == "performance-ranks_from_Kafka-cnn-shapes-32.png"  # a link in Markdown must not have spaces
    text = page.read_text()
    assert f"]({plot.name})" in text
    assert "| 2 ranks | 1,600 | 20.0 | 5.00 | 4,400.0 | 0.100 | 1 | 0.00 |" in text
    assert "| 2 ranks / 1 rank | 1.60 |" in text
    assert "1.60 times as fast as one rank, and 0.80 times as fast as one process of two threads" in text


def test_a_trend_has_the_error_of_means_over_blocks():
    x = np.linspace(0.0, 2.0, 2000)
    noise = np.random.default_rng(0).normal(size=2000)
    slope, error = growth.trend(x, 3.0 * x + noise)
    assert abs(slope - 3.0) < 3 * error
    # The variance of x is (2 - 0)^2 / 12.
    assert error == pytest.approx(1 / np.sqrt(2000 / 3), rel=0.4)


def test_the_innermost_frame_with_a_stage_decides():
    loop = ["<module> (stream_learner/__main__.py:15)", "loop (stream_learner/run/worker.py:64)"]
    learn = [*loop, "learn (stream_learner/learning/learner.py:200)"]
    assert cpu.stage([*loop, "add (stream_learner/run/batches.py:110)"]) == "batches and loop"
    assert (
        cpu.stage([*learn, "learn (stream_learner/learning/trainers/steps.py:90)", "backward (torch/x.py:1)"]) == "step"
    )
    assert cpu.stage([*learn, "predict (stream_learner/learning/trainers/base.py:90)"]) == "predict"
    assert cpu.stage(["run (threading.py:1)"]) == "other"


@pytest.mark.parametrize("size_bytes", [2_000, 70_000, 300_001])
def test_a_padded_jpeg_has_its_size_and_the_same_pixels(size_bytes: int):
    (example,) = inputs.jpegs(32, 1)
    padded = inputs.padded(example, size_bytes)
    assert size_bytes - 4 <= len(padded.image) <= size_bytes
    before, after = (images.decode(each.image, 32, 32, 3, 10**6) for each in (example, padded))
    assert (before == after).all()


def test_the_classes_of_a_data_set_are_numbers_and_its_images_have_one_size(tmp_path: Path):
    for number, name in enumerate(("cats", "dogs", "birds")):
        (tmp_path / "animals" / name).mkdir(parents=True)
        Image.new("L", (20, 20), number).save(tmp_path / "animals" / name / f"{number}.png")
    dataset = inputs.images(str(tmp_path / "animals"))
    assert sorted(example.label for example in dataset) == ["0", "1", "2"]
    assert (dataset.height, dataset.width, dataset.channels) == (20, 20, 1)
    Image.new("L", (20, 22)).save(tmp_path / "animals" / "cats" / "tall.png")
    with pytest.raises(DataError, match="2 sizes"):
        inputs.images(str(tmp_path / "animals"))
    for number in range(8):
        (tmp_path / "animals" / f"more {number}").mkdir()
        Image.new("L", (20, 20)).save(tmp_path / "animals" / f"more {number}" / "image.png")
    with pytest.raises(DataError, match="11 classes"):
        inputs.images(str(tmp_path / "animals"))


def test_goals_are_reached_missed_or_not_measured(tmp_path: Path):
    def round_of(part: str, sides: dict[str, Run], number: int = 0):
        rounds.run(SUBJECT._replace(part=part), lambda: {n: lambda s=s: s for n, s in sides.items()}, number, tmp_path)

    def side(rate: float, **more: object) -> Run:
        return Measurement(rate, 0.1, 1.0, 0.0)._asdict() | more

    for number, rate in enumerate((2900.0, 3100.0, 3200.0)):
        round_of("loops", {"worker": side(rate), "kafka-python": side(500.0), "DataLoader": side(1000.0)}, number)
    saved = side(1.0, stalls_ms=[23.0], idle={"mean_ms": 2.0}, publishing={"mean_ms": 4.0}, commit_s=0.4)
    round_of("checkpoints", {"with saves": saved})
    found = {what: (goal, *rest) for what, goal, *rest in goals.rows(tmp_path)}
    assert found["`cnn`, batch 32: worker, plain / fastest loop"] == ("at least 3", "3.10 (2.90-3.20)", "reached")
    assert found["`cnn`, batch 32: worker from Kafka, plain / limit"] == ("at least 0.7", "not measured", "")
    stall = "`cnn`, batch 32: p99 of the stall of a save, minus one step, ms"
    assert found[stall] == ("at most 20", "21.0", "**missed**")
    # A publisher that was always busy leaves no batch to compare with.
    busy = side(1.0, stalls_ms=[23.0], publishing={"mean_ms": 4.0}, commit_s=0.4)
    rounds.run(SUBJECT._replace(part="checkpoints", model="mlp"), lambda: {"with saves": lambda: busy}, 0, tmp_path)
    assert ("not measured", "") in {row[2:] for row in goals.rows(tmp_path) if row[0] == stall.replace("cnn", "mlp")}
    # 23 ms of stall, and half of 0.4 s: 0.223 s of 30 s.
    assert found["`cnn`, batch 32: cost of one save in 30 s, % of the time"] == ("at most 1", "0.74", "reached")


def test_a_report_needs_a_finished_round(tmp_path: Path):
    with pytest.raises(DataError, match="no finished round"):
        report.write(tmp_path, tmp_path / "runs")


@pytest.mark.parametrize("model", training.MODELS)
def test_the_loops_learn_the_networks_of_the_worker(model: str):
    settings = config.load(None, SUBJECT._replace(model=model).overrides())
    ours = networks.build(spec_of(settings.model, training.CLASSES))
    theirs = training.MODELS[model](28, 1)
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())
