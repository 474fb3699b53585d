import io

import pytest
from rich.console import Console

from stream_learner.contract.vocabulary import Reason, Split
from stream_learner.local.counts import Counts
from stream_learner.local.scrape import Figures
from stream_learner.local.view import Lines, View


def page(**values: float) -> Figures:
    return Figures({(f"stream_learner_{name}", ()): value for name, value in values.items()})


@pytest.fixture
def view() -> View:
    view = View("demo", 70_000, {Split.VALIDATION: "5% of the fed images", Split.TEST: "the data's test part"})
    kinds = {("stream_learner_accuracy_samples", (("kind", kind),)): 1000.0 for kind in ("recent", "test")}
    kinds |= {("stream_learner_accuracy", (("kind", kind),)): 0.875 for kind in ("recent", "test")}
    counts = Counts({"learned": 50_123, Split.TEST: 14_321, Reason.BAD_LABEL: 12, Reason.UNDECODABLE_IMAGE: 3})
    for now, read in (0.0, 0), (50.0, 10_000), (52.0, 40_000):
        view.update(Figures(page(loss=1.25, lag_records=1234).samples | kinds), counts, read)
        view.worker(1234, 1, "learning", now)
    return view


def drawn(view: View, width: int, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding)
    Console(file=file, width=width).print(view)
    file.seek(0)
    return file.read()


@pytest.mark.parametrize(("width", "encoding"), [(60, "utf-8"), (80, "utf-8"), (120, "utf-8"), (80, "ascii")])
def test_no_figure_is_cut_off(view: View, width: int, encoding: str):
    text = drawn(view, width, encoding)
    for shown in ("50,123", "14,321", "1,234", "1.250", "15 (bad_label,", "undecodable_image)", "87.5%  n = 1,000"):
        assert shown in text
    assert "…" not in text
    assert len(text.splitlines()) < 24
    assert {len(line) for line in text.splitlines() if line[0:1] in set("│|╭+╰")} == {width}


def test_rate_and_time_left_are_of_the_last_seconds(view: View):
    """And not of the time before anything was read."""
    assert (view.rate, view.time_left) == (15_000, "0:02")
    view.worker(1234, 1, "learning", 58.0)
    assert (view.rate, view.time_left) == (3_750, "0:08")
    view.worker(1234, 1, None, 70.0)
    assert (view.rate, view.time_left, view.state) == (0, "-", "does not answer")


def test_what_a_new_process_does_not_know_yet_stays(view: View):
    view.worker(1235, 2, None, 53.0)
    assert view.state == "starting"
    view.update(page(loss=float("nan"), lag_records=7), view.counts, 39_000)
    assert view.read == 40_000
    assert "1.250" in (text := drawn(view, 80))
    assert "lag, records  7 " in text
    assert "87.5%  n = 1,000" in text


def test_without_a_terminal_there_is_a_line_now_and_then(view: View):
    said, now = list[str](), [100.0]
    lines = Lines(view, said.append, lambda: now[0])
    for now[0] in (100.0, 109.0, 110.0, 115.0, 120.5):
        lines.refresh()
    line = "worker learning: 0 of 70,000 fed, 40,000 read, 50,123 learned, test 87.5%, time left 0:02"
    assert said == [line, line]
