from collections.abc import Callable

import pytest


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Return a function that prints a figure although pytest captures the output."""

    def show(line: str) -> None:
        with capsys.disabled():
            print(f"\n{line}", flush=True)

    return show
