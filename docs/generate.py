"""Writes what the documentation takes from the code: settings, exit codes, reject reasons, metrics, rights on
Kafka, the rooms, JSON Schemas.

`python docs/generate.py` rewrites the files; `--check` changes nothing and exits 1 when one is out of date.
"""

import ast
import inspect
import json
import re
import sys
import tomllib
from enum import Enum
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import msgspec
from prometheus_client import CollectorRegistry
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import stream_learner
from stream_learner import __version__, config, testing
from stream_learner.contract.acks import Ack
from stream_learner.contract.manifest import Manifest
from stream_learner.contract.pins import Pin
from stream_learner.contract.predictions import Prediction
from stream_learner.contract.vocabulary import Reason
from stream_learner.contract.window import Window
from stream_learner.errors import ExitCode, Remedy
from stream_learner.learning.heads import statistics
from stream_learner.monitoring.metrics import Metrics
from stream_learner.streams.rights import RIGHTS, Role

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "stream_learner"
SCHEMAS = PACKAGE / "contract" / "schemas"
# Programs that a page shows, in `examples/`.
EXAMPLES = (
    "notify.py",
    "serve.py",
    "go/follower.go",
    "java/Producer.java",
    "java/Follower.java",
    "learn_without_kafka.py",
)


def pages() -> dict[Path, str]:
    """Every generated file and what it must hold."""
    operations, topics, security = (ROOT / "docs" / f"{name}.md" for name in ("operations", "topics", "security"))
    examples = ROOT / "docs" / "examples.md"
    api, deploy, development = ROOT / "docs" / "api.md", ROOT / "deploy" / "README.md", ROOT / "docs" / "development.md"
    return {
        ROOT / "docs" / "settings.md": settings_page(),
        operations: filled(operations, {"exit codes": exit_codes(), "metrics": metrics()}),
        api: filled(api, {"public names": public_names(), "checks": checks()}),
        deploy: filled(deploy, {"restarts": restarts()}),
        development: filled(development, {"rooms": rooms()}),
        examples: filled(examples, {name: program(name) for name in EXAMPLES}),
        topics: filled(topics, {"reject reasons": reasons()}),
        security: filled(security, {f"rights of {role}": rights(role) for role in Role}),
        SCHEMAS / "manifest.schema.json": schema(Manifest),
        SCHEMAS / "window.schema.json": schema(Window),
        SCHEMAS / "prediction.schema.json": schema(Prediction),
        SCHEMAS / "pin.schema.json": schema(Pin),
        SCHEMAS / "ack.schema.json": schema(Ack),
    }


def settings_page() -> str:
    parts = [
        "# Settings",
        "",
        "The settings are in one TOML file, which you pass to `stream-learner run` and the other commands. "
        "Environment variables override the file (`STREAM_LEARNER_KAFKA__BOOTSTRAP_SERVERS`), and "
        "`--set kafka.client_id=x` overrides both. A name that is not on this page is an error. Units are in the "
        "names: `_s` seconds, `_bytes` bytes.",
        "",
        "`make docs` generates this page from `stream_learner/config/`. `stream-learner config --schema` prints the "
        "same as JSON Schema. `stream-learner config CONFIG` prints the settings that a worker would use.",
    ]
    for name, field in config.Settings.model_fields.items():
        section = field.annotation
        assert isinstance(section, type)
        assert issubclass(section, BaseModel)
        parts += [
            "",
            f"## [{name}]",
            "",
            field.description or "",
            "",
            "| setting | default | meaning |",
            "|---|---|---|",
        ]
        defaults: dict[str, object] = {}
        for key, setting in section.model_fields.items():
            defaults[key] = setting.get_default(call_default_factory=True, validated_data=defaults)
            default = "required" if setting.is_required() else f"`{toml(defaults[key])}`"
            parts.append(f"| `{key}` | {default} | {one_line(setting.description)} |")
    return "\n".join(parts) + "\n"


def toml(value: object) -> str:
    if value is None or value is PydanticUndefined:
        return "unset"
    return json.dumps(value, default=str)


def exit_codes() -> str:
    documented = member_docs(ExitCode)
    rows = [f"| {code.value} | `{code.name}` | {code.remedy} | {documented[code.name]} |" for code in ExitCode]
    return "\n".join(["| code | name | asks for | meaning |", "|---|---|---|---|", *rows])


def restarts() -> str:
    documented = member_docs(Remedy)
    codes = {
        remedy: ", ".join(f"{code.value} `{code.name}`" for code in ExitCode if code.remedy is remedy)
        for remedy in Remedy
    }
    rows = [f"| {remedy} | {codes[remedy]} | {documented[remedy.name]} |" for remedy in Remedy]
    return "\n".join(["| asks for | exit codes | meaning |", "|---|---|---|", *rows])


def reasons() -> str:
    documented = member_docs(Reason)
    rows = [f"| `{reason.value}` | {documented[reason.name]} |" for reason in Reason]
    return "\n".join(["| reason | meaning |", "|---|---|", *rows])


def metrics() -> str:
    registry = CollectorRegistry()
    Metrics(registry, __version__)
    suffix = {"counter": "_total", "info": "_info"}
    rows = [f"| `{m.name}{suffix.get(m.type, '')}` | {m.type} | {m.documentation} |" for m in registry.collect()]
    return "\n".join(["| metric | type | meaning |", "|---|---|---|", *rows])


def program(name: str) -> str:
    """Return an example as a code block."""
    path = ROOT / "examples" / name
    language = {".py": "python", ".go": "go", ".java": "java"}[path.suffix]
    return f"```{language}\n{path.read_text()}```"


def rights(role: Role) -> str:
    rows = [f"| {right.operation} | {right.resource} | `{right.name}` | {right.purpose} |" for right in RIGHTS[role]]
    return "\n".join(["| operation | on | name | needed to |", "|---|---|---|---|", *rows])


def rooms() -> str:
    """Who may import whom, by the rules of import-linter."""
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (rule["layers"] for rule in rules if rule["type"] == "layers")
    floors = {room: floor for floor, layer in enumerate(layers) for room in layer.split(" | ")}
    forbidden = {
        (source.partition(".")[2], module.removeprefix("stream_learner."))
        for rule in rules
        if rule["type"] == "forbidden"
        for source in rule["source_modules"]
        for module in rule["forbidden_modules"]
    }

    def may_import(room: str, other: str) -> bool:
        return floors[room] < floors[other] and (room, other) not in forbidden

    arrows = []
    for room in floors:
        below = [other for other in floors if may_import(room, other)]
        # Arrows lead on: a room that is reached through another one needs no arrow of its own.
        nearest = [other for other in below if not any(may_import(between, other) for between in below)]
        arrows += [f"  {room} --> {' & '.join(nearest)}"] if nearest else []
    rows = [f"| {room_name(room)} | {room_doc(room)} |" for room in floors]
    lines = ["```mermaid", "flowchart TD", *arrows, "```", "", "| room | what lives there |", "|---|---|", *rows, ""]
    for library, name in (("kafka", "Kafka's client"), ("torch", "torch")):
        allowed = [room_name(room) for room in floors if (room, library) not in forbidden]
        lines.append(f"Only {' and '.join([', '.join(allowed[:-1]), allowed[-1]])} import {name}.")
    return "\n".join(lines)


def room_name(room: str) -> str:
    return f"`{room}/`" if (PACKAGE / room).is_dir() else f"`{room}.py`"


def room_doc(room: str) -> str:
    """The first paragraph of a room's docstring."""
    path = PACKAGE / room / "__init__.py" if (PACKAGE / room).is_dir() else PACKAGE / f"{room}.py"
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring, f"{path} has no docstring"
    return one_line(docstring.partition("\n\n")[0])


def public_names() -> str:
    codes, constants = member_docs(ExitCode), member_docs(statistics)
    rows = []
    for name in stream_learner.__all__:
        value = getattr(stream_learner, name)
        room = getattr(value, "__module__", statistics.__name__).split(".")[1]
        # The docstring of a constant or a class; an error class has that of its exit code.
        meaning = constants.get(name) or value.__doc__ or codes[value.code.name]
        rows.append(f"| `{room}` | `{name}` | {one_line(meaning.split(chr(10) * 2)[0])} |")
    return "\n".join(["| room | name | meaning |", "|---|---|---|", *sorted(rows)])


def checks() -> str:
    rows = [
        f"| `{name}` | {one_line(getattr(testing, name).__doc__.partition(chr(10) * 2)[0])} |"
        for name in testing.__all__
    ]
    return "\n".join(["| name | meaning |", "|---|---|", *rows])


def member_docs(owner: type[Enum] | ModuleType) -> dict[str, str]:
    """The string under each member of an enum or constant of a module, which Python itself does not keep."""
    body = ast.parse(inspect.getsource(owner)).body
    if isinstance(body[0], ast.ClassDef):
        body = body[0].body
    found = {}
    for member, text in pairwise(body):
        if isinstance(member, ast.Assign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            assert isinstance(member.targets[0], ast.Name)
            found[member.targets[0].id] = one_line(str(text.value.value))
    return found


def one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def filled(path: Path, blocks: dict[str, str]) -> str:
    """Return the file's text with each block between its markers replaced."""
    text = path.read_text()
    for name, block in blocks.items():
        begin, end = f"<!-- generated: {name} -->", "<!-- end -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"{path} has no block {begin} ... {end}")
        text = pattern.sub(lambda _, b=block, s=begin, e=end: f"{s}\n{b}\n{e}", text)
    return text


def schema(kind: type) -> str:
    return json.dumps(msgspec.json.schema(kind), indent=2) + "\n"


def main() -> None:
    stale = {path: text for path, text in pages().items() if not path.exists() or path.read_text() != text}
    if "--check" in sys.argv:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is out of date; `make docs` rewrites it", file=sys.stderr)
        sys.exit(bool(stale))
    for path, text in stale.items():
        path.write_text(text)
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
