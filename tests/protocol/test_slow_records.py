"""Records that take long to decode: the worker keeps its role and reacts to signals in the meantime."""

from functools import partial
from pathlib import Path

import child
from feed import Draft
from harness import NewRun
from nasty_images import png_that_claims

SIDE = 4096
SLOW_RECORDS = 25
TURNS = 3


def test_the_loop_turns_and_obeys_while_images_are_slow_to_decode(new_run: NewRun, tmp_path: Path) -> None:
    largest = png_that_claims(SIDE, SIDE, bytes(SIDE * (1 + 3 * SIDE)))
    run = new_run(
        input__max_image_pixels=SIDE * SIDE,
        input__max_record_bytes=len(largest),
        # One batch of them all: nothing is learned until each one is decoded.
        batch__size=SLOW_RECORDS,
        batch__linger_s=600.0,
    )
    run.feed(Draft(None, largest, [("label", b"0"), ("split", b"train")], "train") for _ in range(SLOW_RECORDS))
    turns, in_use = tmp_path / "turns", tmp_path / "in_use"
    worker = run.call("run", target=partial(child.measured, turns=turns, in_use=in_use))
    worker.learning()
    worker.until("turns of the loop", lambda: turns.exists() and turns.stat().st_size >= TURNS * 8)
    assert sum(worker.metric("records_in_total").values()) == 0
    worker.stop()
    assert run.saved() == {}
    log = run.finish(run.start())
    assert sum(window["learned"] for window in log.windows) == SLOW_RECORDS
