"""Short form of `make hostile`: each hostile record at least once."""

from pathlib import Path

from hostile import attack

from stream_learner.local.broker import Broker


def test_a_good_producer_beside_a_hostile_one(broker: Broker, tmp_path: Path) -> None:
    report = attack(broker, tmp_path, seconds=3, seed=0, slow_clients=100, on_second=lambda: None)
    assert not report.missed, vars(report)
    assert {"unreadable_record", "oversized_image", "bad_label", "untrusted_held_out"} <= report.rejected.keys()
    assert report.good_accounted == report.good_fed > 1000
