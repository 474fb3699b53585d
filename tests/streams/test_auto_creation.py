"""This program never makes brokers create missing topics automatically. Only `topics` and the demo create topics."""

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from threading import Event

import pytest
from command_line import stream_learner
from kafka.errors import KafkaError
from kafka.structs import TopicPartition

from stream_learner.config import MIB, InputSettings, KafkaSettings, Settings
from stream_learner.errors import ExitCode, KafkaUnavailableError, PublishError
from stream_learner.local.broker import Broker
from stream_learner.streams import topics
from stream_learner.streams.connection import ask, reader
from stream_learner.streams.source import Source
from stream_learner.streams.transaction import Transaction


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """This module's own, in place of the session's."""
    with Broker(tmp_path_factory.mktemp("creating"), properties="auto.create.topics.enable=true\n") as broker:
        yield broker


@pytest.fixture
def settings(kafka: KafkaSettings, unique_name: str, tmp_path: Path) -> Settings:
    sections = {
        "run": {"id": unique_name},
        "input": {"topics": [f"{unique_name}.input"]},
        "kafka": kafka.model_copy(update={"request_timeout_s": 3.0}),
        # A transaction takes three seconds at most.
        "checkpoint": {"store": str(tmp_path / "objects"), "timeout_s": 1, "max_pending_bytes": MIB},
        "release": {"inline_max_bytes": MIB},
    }
    return Settings.model_validate(sections)


def existing(kafka: KafkaSettings) -> set[str]:
    found = ask(kafka, "listing topics", lambda admin: admin.list_topics())
    return {name for name in found if not name.startswith("__")}


@pytest.mark.parametrize(
    "command",
    [["run"], ["status"], ["rebuild", "--from", "0", "--to", "1"], ["topics", "--check"]],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize("with_outputs", [False, True], ids=["nothing", "no-input"])
def test_commands_report_missing_topics(settings: Settings, command: list[str], with_outputs: bool, tmp_path: Path):
    if with_outputs:
        topics.create(settings)
    before = existing(settings.kafka)
    config = [
        f"run.id={settings.run.id}",
        f'input.topics=["{settings.input.topics[0]}"]',
        f"kafka.bootstrap_servers={settings.kafka.bootstrap_servers}",
        f"checkpoint.store={tmp_path}",
        "monitoring.port=0",
    ]
    done = stream_learner(*command, *(word for one in config for word in ("--set", one)), folder=tmp_path)
    assert done.code == ExitCode.TOPICS, done.err
    assert re.search(rf"{settings.input.topics[0]} (is|are) missing", done.err)
    assert existing(settings.kafka) == before


def test_a_consumer_asks_for_no_topic(settings: Settings):
    before = existing(settings.kafka)
    with closing(reader(settings.kafka)) as consumer:
        place = TopicPartition(settings.input.topics[0], 0)
        consumer.assign([place])
        with pytest.raises(KafkaError):
            consumer.end_offsets([place])
    assert existing(settings.kafka) == before


def test_a_producer_asks_for_no_topic(settings: Settings):
    before = existing(settings.kafka)
    transaction = Transaction(settings)
    transaction.fence()
    transaction.begin()
    with pytest.raises((PublishError, KafkaUnavailableError)):
        transaction.send(settings.input.topics[0], b"value", b"key")
    transaction._producer.close(0)
    assert existing(settings.kafka) == before


def test_an_input_that_is_deleted_stays_deleted(kafka: KafkaSettings, new_topic: Callable[..., str]):
    """While it is read, and metadata are asked for again and again."""
    topic, asked = new_topic(), Event()
    left = 5

    def heard(answer: str) -> None:
        nonlocal left
        left -= answer == "metadata"
        if left <= 0:
            asked.set()

    impatient = kafka.model_copy(update={"request_timeout_s": 1.0})
    with closing(Source(impatient, InputSettings(topics=[topic]), {topic: {0: 0}}, heard)):
        ask(kafka, "deleting a topic", lambda admin: admin.delete_topics([topic]))
        left = 5
        assert asked.wait(60)
        assert topic not in existing(kafka)
