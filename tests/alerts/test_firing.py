"""The rules with shorter times, by which `make alerts` fires every alert."""

from prometheus import RULES, shortened
from ruamel.yaml import YAML


def test_shortened_rules_differ_in_times_alone() -> None:
    yaml = YAML(typ="safe")
    (group,) = shortened(yaml.load(RULES), 60)["groups"]
    rules = {rule["alert"]: rule for rule in group["rules"]}
    assert rules["StreamLearnerNotSaving"]["expr"].startswith(
        "time() - stream_learner_last_checkpoint_timestamp_seconds > 10 * 1\n"
    )
    assert rules["StreamLearnerNotSaving"]["for"] == "5000ms"
    assert "[360000ms:1000ms]" in rules["StreamLearnerAccuracyDrop"]["expr"]
