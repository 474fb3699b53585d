"""Short form of `make alerts`: real faults fire two alerts in a real Prometheus that scrapes real workers."""

from pathlib import Path

from faults import Stage, fire, killed, store_gone
from prometheus import RULES, Prometheus, shortened
from ruamel.yaml import YAML

from stream_learner.local.broker import Broker

FACTOR = 60


def test_alerts_fire_for_the_run_that_has_the_fault(broker: Broker, tmp_path: Path) -> None:
    with Prometheus(tmp_path / "prometheus", FACTOR) as prometheus:
        stage = Stage(broker, tmp_path, prometheus, FACTOR)
        fire(stage, [killed, store_gone])
    assert stage.seconds.keys() == {"StreamLearnerDown", "StreamLearnerNotSaving"}


def test_shortened_rules_differ_in_times_alone() -> None:
    yaml = YAML(typ="safe")
    (group,) = shortened(yaml.load(RULES), 60)["groups"]
    rules = {rule["alert"]: rule for rule in group["rules"]}
    assert rules["StreamLearnerNotSaving"]["expr"].startswith(
        "time() - stream_learner_last_checkpoint_timestamp_seconds > 10 * 1\n"
    )
    assert rules["StreamLearnerNotSaving"]["for"] == "5000ms"
    assert "[360000ms:1000ms]" in rules["StreamLearnerAccuracyDrop"]["expr"]
