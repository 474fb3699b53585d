from pathlib import Path

import pytest

from benchmarks.loops import training
from benchmarks.observation import Measurement
from benchmarks.performance import report, rounds
from benchmarks.performance.rounds import Subject
from stream_learner import config, networks
from stream_learner.errors import DataError
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

    rounds.run(SUBJECT, sides, 2, tmp_path)
    assert "".join(turns) == "abccba"
    rounds.run(SUBJECT, sides, 3, tmp_path)
    assert "".join(turns) == "abccbaabc"
    found = rounds.finished("loops", tmp_path)
    assert [list(round_["measured"]) for round_ in found[SUBJECT]] == [["a", "b", "c"]] * 3
    assert not rounds.finished("kafka", tmp_path)


def test_ratios_compare_rates_of_one_round(tmp_path: Path):
    rates = iter([(9000, 3000, 1000), (6000, 1000, 2000), (2000, 1000, 500)])

    def sides():
        names = ("worker", "kafka-python", "DataLoader")
        return {
            name: lambda rate=rate: Measurement(float(rate), 0.1, 1.0, 0.0)
            for name, rate in zip(names, next(rates), strict=True)
        }

    rounds.run(SUBJECT, sides, 3, tmp_path / "runs")
    (tmp_path / "docs").mkdir()
    page, plot = report.write(tmp_path / "docs", tmp_path / "runs")
    text = page.read_text()
    assert "| worker | 6,000 (2,000-9,000) | 166.7 | 0.100 |" in text
    assert "| worker / kafka-python | 3.00 (2.00-6.00) |" in text
    assert "| worker / the fastest loop of the round | 3.00 (2.00-3.00) |" in text
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert plot.name in text


def test_a_report_needs_a_finished_round(tmp_path: Path):
    with pytest.raises(DataError, match="no finished round"):
        report.write(tmp_path, tmp_path / "runs")


@pytest.mark.parametrize("model", training.MODELS)
def test_the_loops_learn_the_networks_of_the_worker(model: str):
    settings = config.load(None, SUBJECT._replace(model=model).overrides())
    ours = networks.build(spec_of(settings.model, training.CLASSES))
    theirs = training.MODELS[model](28, 1)
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())
