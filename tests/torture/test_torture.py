"""Short form of `make torture`: every kind of life once, without the effects of a publication."""

from pathlib import Path

import pytest
from feed import digits
from lives import LEARNING, RECOVERY
from pictures import Pictures
from torture import torture

from stream_learner.local.broker import Broker

KILLS = 24  # a whole hand of the run of three partitions
POINTS = LEARNING | RECOVERY  # test_recovery kills a worker after each effect
RECORDS = 130 * KILLS


@pytest.mark.timeout(1200)  # a minute on an idle machine
def test_nothing_is_lost_and_nothing_is_there_twice(broker: Broker, tmp_path: Path) -> None:
    report = torture(broker, tmp_path, KILLS, 0, RECORDS, Pictures(digits(), {}), lambda: None, POINTS)
    assert report.violations == []
    assert report.kills == KILLS
    assert report.roll_backs > 1
    assert report.releases > 1
    points = {name.removeprefix("before ").removeprefix("after ") for name in report.by_point}
    assert points >= {*POINTS, "half put", "at random", "beside a zombie", "beside a standby"}
