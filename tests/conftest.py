"""Shared fixtures: one real broker for the whole session, and names that no other test uses."""

import hashlib
import os
import re
import shutil
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hypothesis
import pytest

from stream_learner.config import KafkaSettings, Settings
from stream_learner.local import jars
from stream_learner.local.broker import Broker, _java
from stream_learner.streams.connection import ask

# A shell lets its background jobs ignore SIGINT. The programs that tests start would inherit that, and obey no Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Threads of several processes wait for each other in busy loops. torch reads this variable when it is imported, which
# the conftest of a folder may do.
os.environ["OMP_NUM_THREADS"] = "1"

# The same examples in every run, and none is too slow for a busy machine.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")

LONGEST = (
    "test_torture",
    "test_demo",
    "test_delayed_evaluation",
    "test_serving",
    "test_pinned_releases",
    "test_conformance",
    "test_follower",
    "test_examples",
    "test_directories_of_releases",
    "test_directories",
    "test_past_releases",
    "test_two_workers",
    "test_refusals",
    "test_rebuild",
    "test_failures",
    "test_recovery",
    "test_process_faults",
    "test_broker",
    "test_election",
    "test_command_failures",
    "test_commands",
    "test_source",
    "test_turns",
    "test_equality",
    "test_serving_http",
    "test_start",
    "test_foreign",
    "test_security",
    "test_poison",
    "test_shared_prefix",
    "test_forged",
    "test_newest_release",
    "test_retired_labels",
    "test_hostile",
    "test_poisonous_records",
    "test_every_entry",
    "test_release_formats",
    "test_managed",
    "test_unreadable",
    "test_slow_records",
)
"""Files of tests, by the time that they take."""
# Seed of torch's default generator in a new process.
FIRST_SEED = 67280421310721
# Java's launcher adds these to every command line.
JAVA_OPTIONS = "JDK_JAVA_OPTIONS"
# The folder of what brokers need to start fast, for all processes of a session.
PREPARED = "PREPARED_KAFKA"
CLASSES = "classes.jsa"


def pytest_configure(config: pytest.Config) -> None:
    """Set the environment of the tests' processes."""
    _copy_data()
    if hasattr(config, "workerinput"):  # inherited
        return
    # Of some hundred processes one compiles the modules, the others find them compiled.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    assert config.cache
    _prepare_brokers(config.cache.mkdir("kafka"), bool(config.getoption("numprocesses", None)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Give every test the same torch: earlier tests of the process may have set threads, denormals and random state."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
        torch.set_flush_denormal(False)
        torch.backends.cudnn.deterministic = False
        torch.default_generator.manual_seed(FIRST_SEED)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files that take longest: one that came last would leave the other processes idle."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def _prepare_brokers(folder: Path, make: bool) -> None:
    """Let brokers take Kafka's classes from an archive of Java's, and formatted data from a copy, to start faster."""
    java = Path(_java())
    of_what = f"{java} {java.stat().st_mtime_ns} {jars.cache_folder()}"
    prepared = folder / hashlib.sha256(of_what.encode()).hexdigest()[:16]
    if make and not prepared.exists():
        _prepare(prepared)
    if prepared.exists():
        os.environ[PREPARED] = str(prepared)
        os.environ[JAVA_OPTIONS] = f"-XX:SharedArchiveFile={prepared / CLASSES}"


def _prepare(prepared: Path) -> None:
    """Start and end a broker, which writes at its end the classes that it has used. Keep what its data began with."""
    with TemporaryDirectory(dir=prepared.parent) as scratch, pytest.MonkeyPatch.context() as patch:
        patch.setenv(JAVA_OPTIONS, f"-XX:ArchiveClassesAtExit={Path(scratch) / 'new' / CLASSES}")
        broker = Broker(Path(scratch) / "kafka")
        data = Path(scratch) / "new" / "data"
        data.mkdir(parents=True)
        broker.start()
        for name in ("meta.properties", "bootstrap.checkpoint"):
            shutil.copy(broker.folder / "data" / name, data)
        assert broker._process
        broker._process.terminate()
        broker._process.wait()  # `stop` kills a slow one, which would leave half an archive
        broker.stop()
        with suppress(OSError):  # another session was faster
            data.parent.rename(prepared)


def _copy_data() -> None:
    """Let the brokers of this process copy formatted data: Kafka's storage tool takes 2 s of CPU time."""
    format_by_tool = Broker._format

    def format_by_copy(self: Broker, java: list[str]) -> None:
        if self._format_options or "log.dirs" in self._properties or PREPARED not in os.environ:
            return format_by_tool(self, java)
        shutil.copytree(Path(os.environ[PREPARED]) / "data", self.folder / "data")
        # Two brokers must not look like one.
        text = re.sub(r"(?<=\.id=)[\w-]{22}", lambda _: uuid.uuid4().hex[:22], self._meta.read_text())
        self._meta.write_text(text)

    Broker._format = format_by_copy


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    # Without records that an idle controller writes twice a second.
    with Broker(tmp_path_factory.mktemp("kafka"), properties="metadata.max.idle.interval.ms=0\n") as broker:
        yield broker


@pytest.fixture
def kafka(broker: Broker) -> KafkaSettings:
    return broker.settings


@pytest.fixture
def unique_name(request: pytest.FixtureRequest) -> str:
    """Fit for a run id or a topic."""
    return f"{re.sub('[^a-zA-Z0-9._-]', '-', request.node.name)[:60]}-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def new_settings(kafka: KafkaSettings, unique_name: str) -> Callable[..., Settings]:
    """Return a function that makes settings of a run with a unique name. Other sections are keyword arguments."""

    def new_settings(**sections: Any) -> Settings:
        defaults = {"run": {"id": unique_name}, "input": {"topics": [f"{unique_name}.input"]}, "kafka": kafka}
        return Settings.model_validate(defaults | sections)

    return new_settings


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
