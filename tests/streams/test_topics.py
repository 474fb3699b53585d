"""The topics of a run on a real broker: their creation, their checks and their ids."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType

from stream_learner.config import Settings
from stream_learner.contract.topics import Names
from stream_learner.errors import TopicsError
from stream_learner.streams import topics
from stream_learner.streams.connection import ask
from stream_learner.streams.rights import Role

DEADLINE_S = 60.0


def alter(settings: Settings, topic: str, **configs: object) -> None:
    """Set configs of a topic (`max_message_bytes`). Wait until the broker applies them, which is after the answer."""
    new = {name.replace("_", "."): str(value) for name, value in configs.items()}
    resource = ConfigResource(ConfigResourceType.TOPIC, topic, new)
    ask(settings.kafka, "altering a topic", lambda admin: admin.alter_configs([resource]))

    def applied(admin: KafkaAdminClient) -> bool:
        found = topics._configs(admin, ConfigResourceType.TOPIC, [topic])[topic]
        return all(found[name] == value for name, value in new.items())

    deadline = time.monotonic() + DEADLINE_S
    while not ask(settings.kafka, "looking at a topic", applied):
        assert time.monotonic() < deadline, f"{new} is not applied in {DEADLINE_S:g} s"


def test_what_is_missing_is_made_once(new_settings: Callable[..., Settings]):
    settings = new_settings()
    names = Names.under(settings.prefix)
    output = list(vars(names).values())
    assert topics.differences(settings) == [f"topics {', '.join([*output, *settings.input.topics])} are missing"]
    assert topics.create(settings) == output
    assert topics.create(settings) == []
    with pytest.raises(TopicsError, match=r"^topic .*\.input is missing\. .*--input-partitions N"):
        topics.check(settings)
    assert topics.create(settings, input_partitions=3) == settings.input.topics
    assert topics.create(settings, input_partitions=5) == []
    topics.check(settings)
    with pytest.raises(TopicsError, match=r"\.input has 3 partitions, not 5"):
        topics.check(settings, input_partitions=5)


def test_two_may_make_them_at_once(new_settings: Callable[..., Settings]):
    settings = new_settings()
    with ThreadPoolExecutor(4) as creators:
        for made in [creators.submit(topics.create, settings, 1) for _ in range(4)]:
            made.result()
    topics.check(settings)


def test_larger_limits_pass(new_settings: Callable[..., Settings]):
    settings = new_settings()
    names = Names.under(settings.prefix)
    topics.create(settings, input_partitions=1)
    alter(settings, names.dead_letters, cleanup_policy="delete", max_message_bytes=17_000_000, retention_ms=-1)
    alter(settings, names.weights, cleanup_policy="compact", max_message_bytes=17_000_000, segment_bytes=1 << 30)
    assert topics.differences(settings) == []


@pytest.mark.parametrize(
    ("topic", "configs", "difference"),
    [
        (
            "checkpoints",
            {"cleanup_policy": "delete", "max_message_bytes": 4 << 20},
            "has cleanup.policy=delete, not compact",
        ),
        ("dead-letters", {"max_message_bytes": 1000}, "has max.message.bytes=1000, not 8454144"),
        ("metrics", {"max_message_bytes": 4 << 20, "retention_ms": 1000}, "has retention.ms=1000, not 2592000000"),
        ("weights", {"cleanup_policy": "compact,delete"}, "has cleanup.policy=compact,delete, not compact"),
    ],
)
def test_what_differs_is_said(
    new_settings: Callable[..., Settings], topic: str, configs: dict[str, Any], difference: str
):
    settings = new_settings()
    topics.create(settings, input_partitions=1)
    alter(settings, f"{settings.prefix}.{topic}", **configs)
    assert f"topic {settings.prefix}.{topic} {difference}" in topics.differences(settings)


def test_another_number_of_partitions_is_said(new_settings: Callable[..., Settings]):
    settings = new_settings()
    topics.create(settings, input_partitions=1)
    more = {Names.under(settings.prefix).checkpoints: 3}
    ask(settings.kafka, "adding partitions", lambda admin: admin.create_partitions(more))
    with pytest.raises(TopicsError, match="has 3 partitions, not 1"):
        topics.check(settings)


def test_a_worker_needs_only_what_it_writes(new_settings: Callable[..., Settings]):
    settings = new_settings()
    names = Names.under(settings.prefix)
    topics.create(settings, input_partitions=1)
    beside = [names.predictions, names.acks, names.pins]
    ask(settings.kafka, "deleting", lambda admin: admin.delete_topics(beside))
    assert topics.differences(settings, role=Role.WORKER) == []
    assert topics.differences(settings) == [f"topics {', '.join(beside)} are missing"]


def test_a_topic_made_again_has_another_id(new_settings: Callable[..., Settings]):
    settings = new_settings()
    topics.create(settings)
    name = Names.under(settings.prefix).checkpoints
    before = topics.topic_ids(settings, [name])
    assert before == topics.topic_ids(settings, [name])
    ask(settings.kafka, "deleting", lambda admin: admin.delete_topics([name]))
    topics.create(settings)
    assert topics.topic_ids(settings, [name]).keys() == before.keys()
    assert topics.topic_ids(settings, [name]) != before
    with pytest.raises(TopicsError, match="no-such-topic is missing"):
        topics.topic_ids(settings, [name, "no-such-topic"])


def test_more_replicas_than_brokers(new_settings: Callable[..., Settings]):
    with pytest.raises(TopicsError, match=r"only 1 broker.*topics.replication_factor"):
        topics.create(new_settings(topics={"replication_factor": 3}))
