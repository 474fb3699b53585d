"""Settings of brokers with which a run cannot work: each is named at once."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stream_learner.config import KafkaSettings, Settings
from stream_learner.errors import ExitCode, KafkaUnavailableError
from stream_learner.local.broker import HOST, Broker, free_port
from stream_learner.streams import topics
from stream_learner.streams.connection import ask

PROPERTIES = """
listeners=PLAINTEXT://{{host}}:{{port}},CONTROLLER://{{host}}:{{controller_port}},LOST://{host}:{lost},SASL://{host}:{sasl}
advertised.listeners=PLAINTEXT://{{host}}:{{port}},LOST://no.such.host.invalid:{lost},SASL://{host}:{sasl}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,LOST:PLAINTEXT,SASL:SASL_PLAINTEXT
inter.broker.listener.name=PLAINTEXT
listener.name.sasl.sasl.enabled.mechanisms=PLAIN
listener.name.sasl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_a="b";
offsets.topic.replication.factor=3
transaction.state.log.min.isr=2
"""


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    return {name: free_port() for name in ("lost", "sasl")}


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, ports: dict[str, int]) -> Iterator[Broker]:
    """This module's own, in place of the session's."""
    with Broker(tmp_path_factory.mktemp("odd"), properties=PROPERTIES.format(host=HOST, **ports)) as broker:
        yield broker


def refusal(**kafka: Any) -> str:
    """Return why nothing can be asked. The reason is reported long before `kafka.request_timeout_s`."""
    began = time.monotonic()
    with pytest.raises(KafkaUnavailableError) as refused:
        ask(
            KafkaSettings.model_validate(kafka | {"request_timeout_s": 250}),
            "asking",
            lambda admin: admin.list_topics(),
        )
    assert time.monotonic() - began < 100
    return str(refused.value)


@pytest.mark.usefixtures("broker")
def test_an_advertised_host_that_dns_does_not_know(ports: dict[str, int]):
    message = refusal(bootstrap_servers=f"{HOST}:{ports['lost']}")
    assert f"broker 1 is advertised as no.such.host.invalid:{ports['lost']}" in message
    assert "advertised.listeners" in message


@pytest.mark.usefixtures("broker")
def test_a_mechanism_that_the_listener_lacks(ports: dict[str, int]):
    sasl = {"security_protocol": "SASL_PLAINTEXT", "sasl_username": "a", "sasl_password": "b"}
    server = f"{HOST}:{ports['sasl']}"
    ask(KafkaSettings.model_validate({"bootstrap_servers": server, "sasl_mechanism": "PLAIN"} | sasl), "", lambda _: 0)
    message = refusal(bootstrap_servers=server, sasl_mechanism="SCRAM-SHA-256", **sasl)
    assert "check kafka.sasl_mechanism = SCRAM-SHA-256" in message


def test_internal_topics_that_too_few_brokers_can_make(new_settings: Callable[..., Settings], tmp_path: Path):
    settings = new_settings()
    topics.create(settings, input_partitions=1)
    sets = {
        "run.id": settings.run.id,
        "input.topics": settings.input.topics,
        "kafka.bootstrap_servers": settings.kafka.bootstrap_servers,
        "kafka.request_timeout_s": 300.0,
        "checkpoint.store": str(tmp_path),
        "monitoring.port": 0,
    }
    arguments = [word for name, value in sets.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    command = [sys.executable, "-m", "stream_learner", "run", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == ExitCode.KAFKA
    message = ended.stderr
    assert "topic __consumer_offsets: offsets.topic.replication.factor = 3, but 1 are up" in message
    assert "topic __transaction_state: transaction.state.log.min.isr = 2, but 1 are up" in message
