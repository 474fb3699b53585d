"""A short form of `make torture`: every kind of life once."""

from pathlib import Path

from feed import digits
from torture import EFFECTS, RECOVERY, Pictures, torture

from stream_learner.local.broker import Broker

KILLS = 33  # a whole hand of the run of three partitions
RECORDS = 200 * KILLS


def test_nothing_is_lost_and_nothing_is_there_twice(broker: Broker, tmp_path: Path) -> None:
    report = torture(broker, tmp_path, KILLS, 0, RECORDS, Pictures(digits(), {}), lambda: None)
    assert report.violations == []
    assert report.kills == KILLS
    points = {name.removeprefix("before ").removeprefix("after ") for name in report.by_point}
    assert points >= {*EFFECTS, *RECOVERY, "half put", "at random", "beside a zombie", "beside a standby"}
