"""Output of `stream-learner releases` and `stream-learner history` for a run that has learned."""

import json
from typing import Any

import pytest
from harness import NewRun, Run
from outputs import Log

from stream_learner import NoReleaseError
from stream_learner.errors import ExitCode
from stream_learner.follow.choosing import choose
from stream_learner.follow.past import read_checkpoints, read_releases
from stream_learner.streams.writing import write


def test_the_releases_that_are_kept(finished: tuple[Run, Log]) -> None:
    run, log = finished
    manifests = {manifest["sequence"]: manifest for manifest in log.manifests}
    found = read_releases(run.settings)
    sequences = [release.sequence for release in found]
    assert sequences == [one["sequence"] for one in [*log.manifest["earlier"], log.manifest["release"]]]
    assert [release.used for release in found] == [False, False, True]
    assert not any(release.pinned or release.withdrawn or release.followers for release in found)
    assert found[0].records is None
    for before, release in zip(sequences, found[1:], strict=False):
        between = range(before + 1, release.sequence + 1)
        spans = [span for s in between for parts in manifests[s]["spans"].values() for span in parts.values()]
        assert release.records == sum(end - start for start, end in spans)
    for release in found:
        described = manifests[release.sequence]["release"]
        recalls = sorted(one["correct"] / one["total"] for one in described["test"]["per_class"])
        assert [one.correct / one.total for one in release.lowest] == recalls[:3]
        assert release.test.accuracy == described["test"]["accuracy"]
        assert release.decision
        assert release.decision.reason == manifests[release.sequence]["decision"]["reason"]
    shown = run.call("releases", "--plot").ends(ExitCode.OK)
    assert "in use" in shown
    assert "test accuracy, " in shown
    assert json.loads(run.call("releases", "--json").ends(ExitCode.OK))[-1]["test"]["total"] == found[-1].test.total


def test_the_last_checkpoints(finished: tuple[Run, Log]) -> None:
    run, log = finished
    found = read_checkpoints(run.settings, 10_000)
    assert [one.sequence for one in found] == [manifest["sequence"] for manifest in log.manifests]
    assert any(one.rolled_back_to for one in found)
    assert [one.sequence for one in read_checkpoints(run.settings, 3)] == [one.sequence for one in found[-3:]]
    windows: list[Any] = [json.loads(read.value or b"") for read in log.metrics]
    assert [one.window and one.window.records for one in found] == [window["records"] for window in windows]
    shown = run.call("history", "--limit", str(len(found))).ends(ExitCode.OK)
    assert "refused" in shown
    (last,) = json.loads(run.call("history", "--limit", "1", "--json").ends(ExitCode.OK))
    assert last["window"]["sequence"] == last["sequence"] == found[-1].sequence


def test_before_the_first_checkpoint(new_run: NewRun) -> None:
    run = new_run()
    with pytest.raises(NoReleaseError):
        read_releases(run.settings)
    with pytest.raises(NoReleaseError):
        choose(run.settings, "pin", 1)
    write(run.settings, f"{run.prefix}.metrics", b"key", b"no window")
    assert read_checkpoints(run.settings, 5) == []
    assert run.call("history").ends(ExitCode.OK) == "no checkpoint yet\n"
