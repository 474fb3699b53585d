"""The documentation is correct: every command and setting in it exists, and every link has a target."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer.main

from stream_learner import config
from stream_learner.cli import app
from stream_learner.contract.manifest import Release
from stream_learner.publishing.ownership import MAYBE_REPLACED

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("deploy/*.md")]
COMMANDS = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def test_generated_pages_are_up_to_date():
    subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--check"], check=True)


def test_the_exit_codes_of_a_worker_that_may_have_been_replaced_are_listed():
    *others, last = sorted(MAYBE_REPLACED)
    listed = f"After code {', '.join(map(str, map(int, others)))} or {int(last)} an active worker cannot know"
    assert listed in (ROOT / "docs" / "operations.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_shown_exists(page: Path):
    for command, rest in re.findall(r"stream-learner (run|\w+)\b([^\n`#|]*)", page.read_text()):
        if command in ("version",):
            continue
        assert command in COMMANDS, f"{page.name} shows stream-learner {command}"
        known = {option for parameter in COMMANDS[command].params for option in parameter.opts} | {"--help", "--debug"}
        for option in re.findall(r"--[a-z][a-z-]+", rest):
            assert option in known, f"{page.name} shows stream-learner {command} {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_target_shown_exists(page: Path):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target in re.findall(r"`?make ([a-z]+)\b(?= |`|$)", "\n".join(re.findall(r"`[^`]+`", page.read_text()))):
        assert target in targets, f"{page.name} shows make {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_setting_named_exists(page: Path):
    for section, key in re.findall(r"`([a-z_]+)\.([a-z_]+)(?: = [^`]*)?`", page.read_text()):
        field = config.Settings.model_fields.get(section)
        if field is not None and key not in ("py", "onnx", "safetensors", "json", "txt") and not key.startswith("toml"):
            fields = field.annotation.model_fields  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
            known = {*fields, *(Release.__struct_fields__ if section == "release" else ())}
            assert key in known, f"{page.name} names {section}.{key}"


def test_every_file_to_open_first_exists():
    table = (ROOT / "docs" / "development.md").read_text().partition("| to see | open |")[2].partition("\n\n")[0]
    for path in re.findall(r"`([^`]+)`", table):
        assert (ROOT / "stream_learner" / path).exists(), f"there is no {path}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_import_only_public_names(page: Path):
    for example in blocks(page, "python"):
        for module in re.findall(r"^\s*(?:from|import) (stream_learner\S*)", example, re.MULTILINE):
            assert module in ("stream_learner", "stream_learner.testing")


def test_the_first_configuration_loads(tmp_path: Path):
    for number, block in enumerate(blocks(ROOT / "README.md", "toml")):
        tomllib.loads(block)
        path = tmp_path / f"{number}.toml"
        path.write_text(block)
        config.load(path)
