"""The status of a run from Kafka alone. Tests of the command line cover a run that has learned."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Producer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from stream_learner.config import Settings
from stream_learner.contract.manifest import encode
from stream_learner.errors import StateError, TopicsError
from stream_learner.follow.status import Status, read_status
from stream_learner.publishing.tally import Tally
from stream_learner.streams import topics


def produce(settings: Settings, topic: str, value: bytes, signature: bytes | None = None) -> None:
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap_servers})
    producer.produce(topic, value, b"key", partition=0, headers=[("signature", signature)] if signature else [])
    producer.flush()


def test_before_the_first_checkpoint_everything_is_lag(new_settings: Callable[..., Settings]):
    settings = new_settings()
    topics.create(settings, input_partitions=2)
    (topic,) = settings.input.topics
    produce(settings, topic, b"image")
    assert read_status(settings) == Status(None, None, {topic: {0: 0, 1: 0}}, {topic: {0: 1, 1: 0}}, [])


def test_without_topics_there_is_none(new_settings: Callable[..., Settings]):
    with pytest.raises(TopicsError, match="are missing"):
        read_status(new_settings())


@pytest.mark.parametrize("value", [b"{}", b"not JSON", b'{"schema_version": 3}'])
@pytest.mark.parametrize("topic", ["checkpoints", "metrics"])
def test_records_of_something_else_are_called_so(new_settings: Callable[..., Settings], topic: str, value: bytes):
    settings = new_settings()
    topics.create(settings, input_partitions=1)
    produce(settings, f"{settings.prefix}.{topic}", value)
    with pytest.raises(StateError, match=rf"{settings.prefix}\.{topic} holds no (manifest|window) of run"):
        read_status(settings)


def test_once_a_key_is_set_windows_that_are_not_signed_are_passed_over(
    new_settings: Callable[..., Settings], tmp_path: Path
):
    key, another = (Ed25519PrivateKey.generate() for _ in range(2))
    public = tmp_path / "key.pem"
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    settings = new_settings(security={"verify_key_files": [public]})
    topics.create(settings, input_partitions=1)
    metrics = f"{settings.prefix}.metrics"
    figures: dict[str, Any] = {"validation": None, "test": None, "lag": {}, "created_at": "2025-01-01T00:00:00.000Z"}
    window = Tally().window(run_id=settings.run.id, epoch=1, sequence=1, **figures)
    genuine, forged = encode(window), encode(msgspec.structs.replace(window, sequence=9))
    produce(settings, metrics, forged)
    with pytest.raises(StateError, match="it is not signed by one of"):
        read_status(settings)
    produce(settings, metrics, genuine, key.sign(genuine))
    produce(settings, metrics, forged, another.sign(forged))
    produce(settings, metrics, forged, key.sign(genuine))
    assert read_status(settings).window == window
