"""`stream-learner tune` on a real broker."""

import tomllib

from command_line import Run, failure

from stream_learner import config
from stream_learner.contract.topics import OUTPUTS
from stream_learner.errors import ExitCode
from stream_learner.streams.connection import ask
from stream_learner.streams.offsets import bounds

TUNED = {"threads", "precision", "channels_last"}


def changed_by_runs(run: Run) -> tuple[object, list[str]]:
    """Return the offsets of the output topics, and the run's groups."""
    settings = config.load(run.file, [])
    groups = ask(settings.kafka, "listing groups", lambda admin: admin.list_groups())
    ends = bounds(settings.kafka, [f"{settings.prefix}.{topic}" for topic in OUTPUTS])
    return ends, [group for group in map(str, groups) if run.id in group]


def test_it_measures_and_publishes_nothing(ready: Run):
    ready.output("feed", "--limit", 100)
    before = changed_by_runs(ready)
    shown = ready.output("tune", "--seconds", 1, "--out", "tuned.toml", environment={"COLUMNS": "200"})
    assert shown.count("stays") + shown.count("best") == 2
    tuned = tomllib.loads((ready.folder / "tuned.toml").read_text())
    assert tuned.keys() == {"learning"}
    assert tuned["learning"].keys() <= TUNED
    assert ("the bytes learned from then on differ" in shown) == bool(tuned["learning"])
    assert changed_by_runs(ready) == before


def test_without_records_it_says_what_to_do(ready: Run):
    said = failure(ready("tune", sets="kafka.request_timeout_s=1"), ExitCode.USAGE)
    assert f"the newest records of {ready.input} hold no training sample" in said
    assert "stream-learner feed" in said
