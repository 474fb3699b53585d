"""Requests to a broker that is unavailable, or not ready to answer."""

import logging
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kafka import KafkaAdminClient
from kafka.errors import CoordinatorLoadInProgressError, InvalidTopicError

from stream_learner.config import MIB, KafkaSettings, Settings
from stream_learner.errors import ExitCode, KafkaUnavailableError
from stream_learner.local.broker import HOST
from stream_learner.streams.bootstrap import _Bootstrap, _Client, connect
from stream_learner.streams.connection import ask, client_config, reader
from stream_learner.streams.history import History


class Broker:
    """Answers after it has failed some times."""

    def __init__(self, error: type[Exception], failures: float):
        self.failures = failures
        self.asked = 0
        self._error = error

    def answer(self, _: Any) -> str:
        self.asked += 1
        if self.asked <= self.failures:
            raise self._error
        return "answer"


def test_a_question_is_asked_again_while_kafka_is_electing_or_loading(kafka: KafkaSettings):
    broker = Broker(CoordinatorLoadInProgressError, failures=3)
    assert ask(kafka, "asking", broker.answer) == "answer"
    assert broker.asked == 4


def test_but_not_for_ever(kafka: KafkaSettings):
    impatient = kafka.model_copy(update={"request_timeout_s": 1.0})
    with pytest.raises(KafkaUnavailableError, match=r"while asking .*CoordinatorLoadInProgressError"):
        ask(impatient, "asking", Broker(CoordinatorLoadInProgressError, failures=float("inf")).answer)


def test_nor_when_that_would_not_help(kafka: KafkaSettings):
    broker = Broker(InvalidTopicError, failures=1)
    with pytest.raises(KafkaUnavailableError, match="InvalidTopicError"):
        ask(kafka, "asking", broker.answer)
    assert broker.asked == 1


@pytest.mark.parametrize(
    ("servers", "reason"),
    [
        ("127.0.0.1:1", "ECONNREFUSED"),
        ("kafka.invalid:9092", "DNS"),
        ("127.0.0.1:1, kafka.invalid:9092", "ECONNREFUSED|DNS"),
    ],
)
def test_why_there_is_no_connection_is_said(servers: str, reason: str, caplog: pytest.LogCaptureFixture):
    """Once while it tries, and by the error. What was begun is closed."""
    before = set(threading.enumerate())  # some of which may be ending
    with pytest.raises(KafkaUnavailableError, match=rf"while asking \(.*({reason})") as error:
        ask(KafkaSettings(bootstrap_servers=servers, request_timeout_s=1), "asking", lambda admin: admin.list_topics())
    assert error.value.code == ExitCode.KAFKA
    assert "kafka.bootstrap_servers" in str(error.value)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert f"{servers} cannot be reached yet" in warning
    assert set(threading.enumerate()) <= before


def test_a_client_that_is_closed_before_everything_is_sent_leaves_no_socket_open(kafka: KafkaSettings):
    client = connect(KafkaAdminClient, client_config(kafka))
    client.describe_cluster()
    (connection,) = client._manager._conns.values()
    sock = connection.transport._sock
    client._net.stop()
    connection.transport.write(bytes(64 * MIB))  # more than a socket takes at once
    client.close()
    assert sock.fileno() == -1


def test_a_reader_that_fails_after_it_connected_is_closed(new_settings: Callable[..., Settings], kafka: KafkaSettings):
    """No topic was created, so the history's ends cannot be looked up."""
    settings = new_settings(kafka=kafka.model_copy(update={"request_timeout_s": 1.0}))
    before = set(threading.enumerate())  # some of which may be ending
    with pytest.raises(KafkaUnavailableError, match="failed while reading topic"):
        History(settings)
    assert set(threading.enumerate()) <= before


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A listener that takes connections and never answers."""
    with socket.create_server((HOST, 0)) as silent:
        yield silent


def tls_to(listener: socket.socket) -> KafkaSettings:
    address = f"{HOST}:{listener.getsockname()[1]}"
    return KafkaSettings(bootstrap_servers=address, security_protocol="SSL", request_timeout_s=1)


def test_a_tls_handshake_without_an_answer_ends(silent: socket.socket):
    before = set(threading.enumerate())  # some of which may be ending
    with pytest.raises(KafkaUnavailableError, match=r"while asking .*Handshake failed: no answer"):
        ask(tls_to(silent), "asking", lambda admin: admin.list_topics())
    assert set(threading.enumerate()) <= before


def test_a_client_that_is_closed_during_a_tls_handshake_leaves_no_socket_open(silent: socket.socket):
    config = client_config(tls_to(silent))
    client = _Client(_Bootstrap(config["bootstrap_servers"], 1), **config)
    client._net.start()
    client._manager.bootstrap_async()
    peer, _ = silent.accept()
    with peer:
        assert peer.recv(1)
        client.close()
        while peer.recv(4096):
            pass


def test_a_client_that_is_closed_while_it_asks_for_metadata_logs_no_error(
    kafka: KafkaSettings, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(10):
        consumer = reader(kafka)
        consumer._client._manager.cluster.request_update()
        consumer.close()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
