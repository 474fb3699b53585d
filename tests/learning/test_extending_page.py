"""`docs/extending.md`: its tables name what the base classes have, and its examples work."""

import importlib
import inspect
import re
import sys
import threading
import tomllib
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from digit_stream import ENCODED, decided, learned, settings, stream

from stream_learner.config import Settings
from stream_learner.contract.vocabulary import Reason
from stream_learner.formats.decoder import Decoder
from stream_learner.formats.record import Record, RejectError, RetryLaterError, Sample

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
INTRODUCTION, *_SECTIONS = PAGE.split("\n## ")
SECTIONS = dict(section.split("\n", 1) for section in _SECTIONS)
BASES = dict(re.findall(r"^\| \[(.+?)\]\(#.*?\) \|.*\| `([\w.]+)` \|$", INTRODUCTION, re.MULTILINE))
LEARNING = [name.capitalize() for name in ("network", "head", "strategy", "weight policy", "augmentation")]
# Whose public names are all for users; the others are also models of pydantic and modules of torch.
OURS_ALONE = ["Head", "Strategy", "Weight policy"]


def blocks(section: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", SECTIONS[section], re.DOTALL)


def configuration(section: str) -> str:
    (found,) = blocks(section, "toml")
    return found


def check(section: str, replace: tuple[str, str] = ("", "")) -> None:
    """Runs the check that ends a section."""
    _, found = blocks(section, "python")
    exec(found.replace(*replace), {})


def table(section: str, heading: str) -> list[str]:
    """The first column of the table of that heading."""
    _, *tables = SECTIONS[section].split(f"\n| {heading} | |\n|---|---|\n")
    return [row.split("`")[1] for rows in tables for row in rows.split("\n\n")[0].splitlines()]


def base_of(section: str) -> type:
    module, _, name = BASES[section.lower()].rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.fixture
def chosen(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Settings that choose the example of a section, which is in the file that the page names."""
    section: str = request.param
    document = tomllib.loads(configuration(section))
    (file,) = re.findall(r"[Ww]rite `(\w+)\.py`", SECTIONS[section])
    assert re.search(rf'"{file}:\w+"', configuration(section))
    (tmp_path / f"{file}.py").write_text(blocks(section, "python")[0])
    monkeypatch.syspath_prepend(tmp_path)
    yield settings(**{f"{name}__{key}": value for name, keys in document.items() for key, value in keys.items()})
    sys.modules.pop(file)


def test_every_part_has_a_section():
    assert [name.lower() for name in SECTIONS] == re.findall(r"^\| \[(.+?)\]\(#", INTRODUCTION, re.MULTILINE)
    assert [*SECTIONS] == ["Record format", *LEARNING]
    assert {*BASES} == {name.lower() for name in SECTIONS} - {"augmentation"}


@pytest.mark.parametrize("section", [name for name in SECTIONS if name != "Augmentation"])
def test_the_tables_name_what_the_base_class_has(section: str):
    base = base_of(section)
    for signature in table(section, "method"):
        name, _, arguments = signature.rstrip(")").partition("(")
        _, *parameters = inspect.signature(getattr(base, name)).parameters
        assert ", ".join(parameters) == arguments, name
    named = {signature.partition("(")[0] for signature in table(section, "method")} | {*table(section, "attribute")}
    public = {name for name in {*vars(base), *inspect.get_annotations(base)} if not name.startswith("_")}
    assert named <= public
    if section in OURS_ALONE:
        assert named == public


@pytest.mark.parametrize(("chosen", "section"), [(name, name) for name in LEARNING], indirect=["chosen"])
def test_an_example_learns_by_its_settings_and_passes_its_check(chosen: Settings, section: str):
    snapshot = decided(learned(chosen, stream()))
    assert snapshot.candidate
    assert len(snapshot.candidate.labels) == 10
    check(section)


class Images(BaseHTTPRequestHandler):
    """A web server of images by number. Number 5 is not available at first."""

    available: set[str]

    def __init__(self, available: set[str], *rest: Any):
        self.available = available
        super().__init__(*rest)

    def do_GET(self) -> None:
        name = self.path.removeprefix("/")
        if name not in self.available and name == "5":
            self.available.add(name)
            self.send_error(503)
        elif name.isdigit():
            self.send_response(200)
            self.end_headers()
            self.wfile.write(ENCODED[int(name)])
        elif name == "large":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(bytes(1_000_001))
        else:
            self.send_error(410 if name == "gone" else 404)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the overridden name)
        pass


@pytest.mark.parametrize("chosen", ["Record format"], indirect=True)
def test_the_example_of_a_format_has_all_three_outcomes(chosen: Settings):
    def record(value: bytes) -> Record:
        return Record("images", 0, 0, 0, None, value, [("label", b"cat")])

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Images, set())) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            served = chosen.input.model_copy(update={"format_settings": {"url": url}})
            decode = Decoder.from_settings(chosen.model_copy(update={"input": served}))
            sample = decode(record(b"7"))
            assert isinstance(sample, Sample)
            assert (sample.image, sample.label) == (ENCODED[7], "cat")
            refused = {
                b"none": Reason.NO_IMAGE,
                b"gone": Reason.NO_IMAGE,
                b"../7": Reason.NO_IMAGE,  # which stays one name
                b"large": Reason.OVERSIZED_IMAGE,
                b"7" * 1001: Reason.BAD_ENVELOPE,
            }
            for name, reason in refused.items():
                with pytest.raises(RejectError) as caught:
                    decode(record(name))
                assert caught.value.reason is reason
            with pytest.raises(RetryLaterError, match="503"):
                decode(record(b"5"))
            assert decode(record(b"5"))
            check("Record format", ("http://127.0.0.1:8000", url))
        finally:
            server.shutdown()
            thread.join()
    with pytest.raises(RetryLaterError, match="refused"):
        decode(record(b"7"))
