"""The public names: there, documented, and imported when they are used."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import stream_learner
from stream_learner import testing

HEAVY = "heavy = {'torch', 'kafka', 'pydantic'} & {*sys.modules}"


@pytest.mark.parametrize("name", stream_learner.__all__)
def test_every_public_name_is_there_and_listed(name: str):
    assert getattr(getattr(stream_learner, name), "__name__", "NEVER") == name
    assert f"| `{name}` |" in (Path(__file__).parent.parent / "docs" / "api.md").read_text()
    assert name in dir(stream_learner)


@pytest.mark.parametrize("name", testing.__all__)
def test_every_check_is_listed(name: str):
    assert getattr(testing, name).__name__ == name
    assert f"| `{name}` |" in (Path(__file__).parent.parent / "docs" / "api.md").read_text()


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Learned'"):
        stream_learner.Learned  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("used", "imported"),
    [
        ("__version__", set()),
        ("StateError", set()),
        ("load", {"pydantic"}),
        ("Format", {"pydantic"}),
        ("Sample", {"pydantic"}),
        ("read_release", {"pydantic", "kafka"}),
        ("Learner", {"pydantic", "torch"}),
        ("testing", {"pydantic", "torch"}),
    ],
)
def test_a_name_imports_no_more_than_it_needs(used: str, imported: set[str]):
    program = f"import sys; from stream_learner import {used}; {HEAVY}; print(*sorted(heavy))"
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert set(found.stdout.split()) == imported


def test_the_version_is_that_of_the_package():
    package = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    assert stream_learner.__version__ == package["project"]["version"]


def test_type_checkers_see_the_types():
    assert Path(stream_learner.__file__).with_name("py.typed").exists()
