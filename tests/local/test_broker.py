import contextlib
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka import KafkaAdminClient

from stream_learner.config import KafkaSettings
from stream_learner.errors import KafkaUnavailableError
from stream_learner.local import broker as broker_module
from stream_learner.local.broker import HOST, Broker, is_running
from stream_learner.streams.connection import ask


def topics(kafka: KafkaSettings) -> list[str]:
    return ask(kafka, "listing topics", lambda admin: admin.list_topics())


def add_topic(admin: KafkaAdminClient) -> None:
    admin.create_topics({"kept": {"num_partitions": 1, "replication_factor": 1}}, wait_for_metadata=True)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Another program on a port."""
    with socket.create_server((HOST, 0)) as listener:
        yield listener


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a stopped broker, which holds a topic."""
    folder = tmp_path_factory.mktemp("stopped") / "päth with spaces"
    with Broker(folder) as broker:
        ask(broker.settings, "making a topic", add_topic)
    return folder


@pytest.fixture
def folder(stopped: Path, tmp_path: Path) -> Path:
    """A copy of that folder. A broker starts sooner there than in an empty folder."""
    return shutil.copytree(stopped, tmp_path / stopped.name)


def test_what_it_holds_survives_a_stop_and_a_kill(folder: Path):
    with Broker(folder) as broker:
        assert topics(broker.settings) == ["kept"]
        address = broker.bootstrap_servers
        broker.kill()
        broker.start()
        assert broker.bootstrap_servers == address
        assert topics(broker.settings) == ["kept"]


def test_frozen_it_does_not_answer_and_thawed_it_does(broker: Broker):
    impatient = KafkaSettings(bootstrap_servers=broker.bootstrap_servers, request_timeout_s=1)
    broker.freeze()
    try:
        with pytest.raises(KafkaUnavailableError, match="listing topics"):
            topics(impatient)
    finally:
        broker.thaw()
    assert isinstance(topics(broker.settings), list)


def test_stop_ends_a_frozen_broker_and_may_be_repeated(folder: Path):
    broker = Broker(folder)
    broker.stop()
    broker.start()
    host, port = broker.bootstrap_servers.split(":")
    broker.freeze()
    broker.stop()
    broker.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)))


def test_a_port_that_is_taken_is_named(tmp_path: Path, listener: socket.socket):
    port = listener.getsockname()[1]
    with pytest.raises(KafkaUnavailableError, match=f"port {port} on 127.0.0.1 is in use"):
        Broker(tmp_path, port).start()


def test_a_port_taken_while_it_starts_is_replaced(folder: Path, listener: socket.socket, monkeypatch):
    free_port = broker_module.free_port
    ports = iter([listener.getsockname()[1], free_port(), free_port(), free_port()])
    monkeypatch.setattr(broker_module, "free_port", lambda: next(ports))
    with Broker(folder) as broker:
        assert broker.bootstrap_servers != f"{HOST}:{listener.getsockname()[1]}"


def test_two_brokers_cannot_share_a_folder(broker: Broker):
    with pytest.raises(KafkaUnavailableError, match="another Kafka runs in"):
        Broker(broker.folder).start()


def test_whether_one_runs_in_a_folder_is_known(broker: Broker, tmp_path: Path):
    assert is_running(broker.folder)
    assert not broker.ended()
    assert not is_running(tmp_path)
    (tmp_path / "kafka.log").touch()
    assert not is_running(tmp_path)


def test_why_it_does_not_start_is_said(folder: Path):
    meta = folder / "data" / "meta.properties"
    meta.write_text(meta.read_text().replace("node.id=1", "node.id=2"))
    with pytest.raises(KafkaUnavailableError, match=r"ended with code 1 while starting: .*node.*see .*kafka\.log"):
        Broker(folder).start()


START_AND_WAIT = """
import sys
from pathlib import Path
from stream_learner.local.broker import Broker
with Broker(Path(sys.argv[1])) as broker:
    print(broker.bootstrap_servers, flush=True)
    sys.stdin.read()
"""


def test_it_does_not_outlive_a_parent_that_is_killed(folder: Path):
    command = [sys.executable, "-c", START_AND_WAIT, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        host, port = parent.stdout.readline().strip().split(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            parent.send_signal(signal.SIGKILL)
            with contextlib.suppress(ConnectionResetError):  # says the same, if not as politely
                assert connection.recv(1) == b""
