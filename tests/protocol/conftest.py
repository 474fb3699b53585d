from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from feed import flipped, mixed
from harness import NewRun, Run
from outputs import Log

from stream_learner.local.broker import Broker


@pytest.fixture
def new_run(broker: Broker, tmp_path: Path) -> Iterator[NewRun]:
    """Makes runs with topics of their own; settings as keyword arguments, `section__key`."""
    runs: list[Run] = []

    def new_run(partitions: int = 1, **settings: Any) -> Run:
        overrides = {name.replace("__", ".", 1): value for name, value in settings.items()}
        folder = tmp_path / f"{tmp_path.name}-{len(runs)}"
        runs.append(Run(broker, folder, partitions, overrides))
        return runs[-1]

    yield new_run
    for run in runs:
        run.close()


@pytest.fixture(scope="session")
def finished(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Log]:
    """Return a run that nothing disturbed, and its output. Wrong labels made it go back to a release."""
    settings = {
        "learning.learning_rate": 0.02,
        "learning.average_decay": 0.5,
        "release.every_records": 350,
        "release.patience": 1,
        "release.max_drop": 0.02,
        "release.keep": 3,
    }
    run = Run(broker, tmp_path_factory.mktemp("finished"), 2, settings)
    run.feed(flipped(mixed(3000), 1400))
    return run, run.finish(run.start())
