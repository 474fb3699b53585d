"""A broker that limits the settings of topics, as managed Kafka does."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from feed import Draft, mixed
from harness import Run
from structlog.testing import capture_logs

from stream_learner.config import MIB, Settings
from stream_learner.local import jars
from stream_learner.local.broker import Broker
from stream_learner.streams import topics

POLICY = Path(__file__).with_name("ManagedPolicy.java")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """This module's own, in place of the session's."""
    assert shutil.which("javac"), "this test needs a Java compiler: install a JDK (default-jdk-headless)"
    folder, class_path = tmp_path_factory.mktemp("managed"), jars.class_path()
    subprocess.run(["javac", "-cp", class_path, "-d", folder, POLICY], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jars, "class_path", lambda: os.pathsep.join([class_path, str(folder)]))
        with Broker(folder / "kafka", properties="create.topic.policy.class.name=ManagedPolicy\n") as broker:
            yield broker


def test_what_the_brokers_allow_is_taken_and_said(new_settings: Callable[..., Settings]):
    settings = new_settings()
    with capture_logs() as logs:
        topics.create(settings, input_partitions=1)
    topics.check(settings)
    taken = {entry["topic"].rpartition(".")[2]: entry["taken"] for entry in logs}
    assert taken == {
        "checkpoints": {"segment.bytes": str(50 * MIB)},
        "weights": {"segment.bytes": str(50 * MIB)},
        "dead-letters": {"max.message.bytes": str(8 * MIB)},
    }
    assert all("is not within" in entry["why"] for entry in logs)
    assert topics.dead_letter_limit(settings) == 8 * MIB


def test_a_run_publishes_and_a_dead_letter_over_the_limit_leaves_its_value_out(broker: Broker, tmp_path: Path):
    run = Run(broker, tmp_path / "managed", overrides={"input.max_record_bytes": 2 * MIB, "rejects.max_share": 1.0})
    run.set_max_message_bytes("dead-letters", MIB)
    run.feed(mixed(500))
    run.feed([Draft(None, b"x" * 990_000, [("label", b"1")], "undecodable_image")])
    worker = run.start()
    run.learned(worker)
    worker.stop()
    letters = [record for record in run.read("dead-letters") if ("truncated", b"true") in (record.headers or [])]
    assert [record.value for record in letters] == [None]
    run.close()
