from contextlib import nullcontext
from pathlib import Path

import pytest
from rich.progress import Progress

from benchmarks import incremental, through_kafka
from benchmarks.data import open_data
from benchmarks.trial import Trial
from stream_learner.local.broker import Broker


def test_the_worker_learns_what_is_learned_in_memory(
    broker: Broker, unique_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(through_kafka, "Broker", lambda _: nullcontext(broker))
    for module in (incremental, through_kafka):
        monkeypatch.setattr(module, "TOPIC", unique_name)
    overrides = (f"run.id={unique_name}", f"input.topics=['{unique_name}']", "learning.threads=1")
    data = open_data(None)
    with Progress(disable=True) as progress:
        memory, kafka = (
            Trial("increments", "mkd", 0, 1, "mlp", 10, None, False, overrides, through).once(tmp_path, data, progress)
            for through in (False, True)
        )
    assert kafka["final"] == memory["final"]
    assert kafka["steps"] == memory["steps"]
    assert kafka["views"] == kafka["teacher_views"] == memory["views"] + 10  # the first step finds nothing to replay
    assert memory["views"] == memory["teacher_views"]
