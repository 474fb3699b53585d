"""What many tests share: one real broker for the whole session, and names that no other test uses."""

import re
import uuid
from collections.abc import Callable, Iterator

import hypothesis
import pytest

from stream_learner.config import KafkaSettings
from stream_learner.local.broker import Broker
from stream_learner.streams.connection import ask

# The same examples in every run, and none is too slow for a busy machine.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with Broker(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


@pytest.fixture
def kafka(broker: Broker) -> KafkaSettings:
    return broker.settings


@pytest.fixture
def unique_name(request: pytest.FixtureRequest) -> str:
    """Fit for a run id or a topic."""
    return f"{re.sub('[^a-zA-Z0-9._-]', '-', request.node.name)[:60]}-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def new_topic(kafka: KafkaSettings, unique_name: str) -> Callable[..., str]:
    """Makes the test's topic, with configs as keyword arguments (`max_message_bytes`), and returns its name."""

    def new_topic(partitions: int = 1, **configs: object) -> str:
        topic = {
            "num_partitions": partitions,
            "replication_factor": 1,
            "configs": {name.replace("_", "."): str(value) for name, value in configs.items()},
        }
        ask(kafka, "making a topic", lambda admin: admin.create_topics({unique_name: topic}, wait_for_metadata=True))
        return unique_name

    return new_topic
