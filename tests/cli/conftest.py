"""A run's settings file, and its topics."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Run

from stream_learner.config import KafkaSettings
from stream_learner.local.broker import HOST


@pytest.fixture
def run(kafka: KafkaSettings, unique_name: str, tmp_path: Path) -> Run:
    """A run that has no topics yet."""
    return Run(tmp_path, unique_name, kafka)


@pytest.fixture
def ready(run: Run) -> Run:
    """A run that has its topics, two partitions of input among them."""
    run.output("topics", "--input-partitions", 2)
    return run


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which something listens."""
    with socket.create_server((HOST, 0)) as listener:
        yield listener.getsockname()[1]
