"""Output of a start that cannot reach Kafka: the reason, once, in few lines."""

import json
import socket
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from command_line import Done, stream_learner
from secured import make_certificates

from stream_learner.errors import ExitCode
from stream_learner.local.broker import HOST, Broker, free_port

LISTENERS = ("lost", "sasl", "tls")
PROPERTIES = """
listeners=PLAINTEXT://{{host}}:{{port}},CONTROLLER://{{host}}:{{controller_port}},LOST://{host}:{lost},SASL://{host}:{sasl},TLS://{host}:{tls}
advertised.listeners=PLAINTEXT://{{host}}:{{port}},LOST://no.such.host.invalid:{lost},SASL://{host}:{sasl},TLS://{host}:{tls}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,LOST:PLAINTEXT,SASL:SASL_PLAINTEXT,TLS:SSL
inter.broker.listener.name=PLAINTEXT
listener.name.sasl.sasl.enabled.mechanisms=PLAIN
listener.name.sasl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_a="b";
ssl.keystore.type=PEM
ssl.keystore.location={folder}/broker-chain.pem
"""
SASL = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN", "sasl_username": "a"}


class Kafka(NamedTuple):
    """Ports of the broker's listeners, by name, and where its certificates are."""

    ports: dict[str, int]
    folder: Path


@pytest.fixture(scope="module")
def listening(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    folder = tmp_path_factory.mktemp("listening")
    make_certificates(folder)
    ports = {name: free_port() for name in LISTENERS}
    with Broker(folder / "kafka", properties=PROPERTIES.format(host=HOST, folder=folder, **ports)) as broker:
        ports["plain"] = int(broker.bootstrap_servers.rpartition(":")[2])
        yield Kafka(ports, folder)


def run(folder: Path, port: int, kafka: dict[str, Any], monitoring_port: int = 0) -> Done:
    file = folder / "worker.toml"
    settings = {"bootstrap_servers": f"{HOST}:{port}", "client_id": "a-client", "request_timeout_s": 250.0} | kafka
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    file.write_text(
        f'run.id = "digits"\ninput.topics = ["images"]\nmonitoring.port = {monitoring_port}\nlog.format = "json"\n'
        f"[kafka]\n{chr(10).join(lines)}\n"
    )
    return stream_learner("run", file, folder=folder)


@pytest.mark.parametrize(
    ("listener", "kafka", "says", "most_warnings"),
    [
        ("nobody", {"request_timeout_s": 3.0}, "ECONNREFUSED", 1),
        ("sasl", SASL | {"sasl_password": "hunter2"}, "check the credentials in [kafka]", 0),
        ("lost", {}, "advertised as no.such.host.invalid", 1),
        ("plain", {"security_protocol": "SSL"}, "kafka.security_protocol", 1),
        ("tls", {}, "kafka.security_protocol", 1),
        ("sasl", {}, "kafka.security_protocol", 1),
        ("tls", {"security_protocol": "SSL"}, "certificate verify failed", 0),
    ],
    ids=["wrong-port", "wrong-password", "unknown-host", "tls-to-plain", "plain-to-tls", "plain-to-sasl", "untrusted"],
)
def test_why_kafka_is_not_reached_is_said_once(
    listening: Kafka, tmp_path: Path, listener: str, kafka: dict[str, Any], says: str, most_warnings: int
):
    done = run(tmp_path, listening.ports.get(listener) or free_port(), kafka)
    assert done.code == ExitCode.KAFKA, done.err
    *before, error = done.err.splitlines()
    assert says in error
    assert "hunter2" not in done.err
    events = [json.loads(line) for line in before]
    warned = [event["event"] for event in events if event["level"] != "info"]
    assert len(warned) <= most_warnings, done.err
    assert all("cannot be reached yet" in event or "DNS lookup failed" in event for event in warned)
    assert len(events) <= 1 + most_warnings, done.err
    # Long before kafka.request_timeout_s = 250.
    assert time.time() - datetime.fromisoformat(events[0]["timestamp"]).timestamp() < 100


def test_a_taken_port_is_named_before_kafka_is_asked(tmp_path: Path):
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        done = run(tmp_path, free_port(), {}, monitoring_port=port)
    assert done.code == ExitCode.USAGE
    (error,) = done.err.splitlines()
    assert f"cannot listen on {HOST}:{port}" in error or "monitoring.port" in error
