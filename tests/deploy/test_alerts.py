"""deploy/alerts.yml: valid, tested, explained, and about metrics that exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from ruamel.yaml import YAML

from stream_learner.monitoring.health import Health
from stream_learner.monitoring.metrics import Metrics

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "alerts.yml"
TESTS = DEPLOY / "alerts.test.yml"
NAMES = [
    "StreamLearnerDown",
    "StreamLearnerNotLearning",
    "StreamLearnerNotSaving",
    "StreamLearnerKafkaLost",
    "StreamLearnerRejectRatio",
    "StreamLearnerLagGrowing",
    "StreamLearnerRetentionRisk",
    "StreamLearnerReleaseRefused",
    "StreamLearnerAccuracyDrop",
    "StreamLearnerRestartLoop",
]


def rules() -> dict[str, dict]:
    (group,) = YAML(typ="safe").load(RULES)["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    tool = Path(sys.executable).with_name("promtool")
    assert tool.exists(), f"{tool} is missing; `make test` puts it there, from Debian's package prometheus"
    return subprocess.run([tool, *arguments], capture_output=True, text=True)


def failing(folder: Path, tests: str, expression: str | None = None) -> set[str]:
    """Alerts whose tests fail, once every rule has another expression."""
    document = YAML(typ="safe").load(RULES)
    for rule in document["groups"][0]["rules"] if expression else ():
        rule["expr"] = expression
    YAML().dump(document, folder / RULES.name)
    (folder / TESTS.name).write_text(tests)
    done = promtool("test", "rules", folder / TESTS.name)
    assert done.returncode == 1, done.stdout
    return set(re.findall(r"alertname: (\w+)", done.stdout + done.stderr))


def test_the_rules_pass_their_tests():
    done = promtool("test", "rules", TESTS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(rules()) == NAMES


def test_each_rule_is_tested_firing_and_not_firing(tmp_path):
    assert failing(tmp_path, TESTS.read_text(), "vector(0) > 1") == set(NAMES)
    assert failing(tmp_path, TESTS.read_text(), "vector(1)") == set(NAMES)


def test_each_rule_is_tested_to_name_its_run(tmp_path):
    wrong = re.sub(r"(exp_labels: .*)run: digits", r"\1run: cats", TESTS.read_text())
    assert failing(tmp_path, wrong) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_rule_says_which_run_how_bad_and_what_to_do(name):
    rule = rules()[name]
    assert rule["labels"]["severity"] in ("critical", "warning")
    notes = rule["annotations"]
    for note in ("summary", "description"):
        assert "$labels.run" in notes[note]
    page, _, anchor = notes["runbook_url"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)
    assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_rules_name_metrics_that_exist():
    registry = CollectorRegistry()
    metrics = Metrics(registry, "1.2.3", ["images"])
    metrics.follow(Health(live_timeout_s=10))
    metrics.begin({"images": {0: 0}})
    metrics.observe_lag("images", 0, 0, 0.0)
    metrics.observe_log_start("images", 0, 0)
    samples = {sample.name: sample.labels for metric in registry.collect() for sample in metric.samples}
    expressions = " ".join(rule["expr"] for rule in rules().values())
    named = set(re.findall(r"stream_learner_\w+", expressions))
    assert named
    assert named <= samples.keys()
