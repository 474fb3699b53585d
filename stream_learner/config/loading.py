"""Load settings: merge file, environment and overrides, validate them, and name the wrong field in each error.

Sources, strongest first: `--set section.key=value`, environment (`STREAM_LEARNER_SECTION__KEY`), one TOML file.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, InitSettingsSource, SettingsError

from stream_learner.config.fields import KAFKA_NAME
from stream_learner.config.settings import ENV_PREFIX, FollowSettings, Settings
from stream_learner.errors import UsageError

# Variables that Kubernetes sets for a Service called stream-learner or stream-learner-x.
SERVICE = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT=\w+://.*|PORT_\d+_\w+(_PROTO|_PORT|_ADDR)?)(=|$)")
# Pydantic's error for a default that depends on an invalid value.
CONSEQUENCE = "default_factory_not_called"

Loaded = TypeVar("Loaded", Settings, FollowSettings)


def load(path: Path | None, overrides: list[str] | None = None) -> Settings:
    """Read, merge and validate the settings.

    `path` is the TOML file, or None for the environment alone. `overrides` are `section.key=value`, with the value in
    TOML notation (bare words are strings). Raises UsageError, which names the field and a valid value.
    """
    return _load(Settings, path, overrides)


def load_follower(path: Path | None, overrides: list[str] | None = None) -> FollowSettings:
    """Read the settings of a program that follows a run, as `load` does. Ignore other sections of a worker's file."""
    return _load(FollowSettings, path, overrides)


def _load(kind: type[Loaded], path: Path | None, overrides: list[str] | None) -> Loaded:
    if path is not None and not path.is_file():
        named = path if path.suffix == ".toml" else "of that name"  # the name may be a password
        raise UsageError(f"there is no settings file {named}; copy deploy/worker.example.toml to start")

    document: dict[str, Any] = {}

    class Merged(kind):  # pyright: ignore[reportGeneralTypeIssues]
        @classmethod
        def settings_customise_sources(cls, settings_cls, init_settings, env_settings, **_):  # pyright: ignore
            return init_settings, env_settings, InitSettingsSource(settings_cls, document)

    try:
        if path is not None:
            text = path.read_text(encoding="utf-8-sig")  # some editors begin with a BOM
            document |= _relevant(tomllib.loads(text), kind)
        settings = Merged(**_relevant(_nested(overrides or []), kind))
        _reject_unknown_environment()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except SettingsError as error:
        raise UsageError(f'cannot parse a setting in the environment; write a list as ["a", "b"]: {error}') from None
    except ValidationError as error:
        raise usage_error(error) from None
    return settings


def usage_error(error: ValidationError) -> UsageError:
    """Return pydantic's error as a UsageError that names each wrong field and what is allowed there."""
    return UsageError("; ".join(_explain(e) for e in error.errors() if e["type"] != CONSEQUENCE))


def schema() -> dict[str, Any]:
    """Return the JSON Schema of the settings file."""
    return Settings.model_json_schema()


def _nested(overrides: list[str]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for override in overrides:
        path, separator, text = override.partition("=")
        *sections, key = path.strip().split(".")
        if not separator or len(sections) != 1:
            raise UsageError(f"--set {_named(path.strip())} is not of the form section.key=value")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        document.setdefault(sections[0], {})[key] = value
    return document


def _relevant(document: dict[str, Any], kind: type[BaseSettings]) -> dict[str, Any]:
    """Return a document without the sections that only a worker needs. Sections that nobody knows remain."""
    ignored = Settings.model_fields.keys() - kind.model_fields.keys()
    return {section: values for section, values in document.items() if section not in ignored}


def _named(path: str) -> str:
    """Return the name of a setting, or `***` for other text, which may be a secret."""
    known = {*Settings.model_fields, *(key for name in Settings.model_fields for key in _section(name))}
    return path if set(path.split(".")) <= known else "***"


def _reject_unknown_environment() -> None:
    # pydantic-settings looks up only the names that it knows, so it never sees a misspelt section.
    for name, value in os.environ.items():
        section, nested, _ = name.removeprefix(ENV_PREFIX).lower().partition("__")
        if not name.startswith(ENV_PREFIX) or SERVICE.search(f"{name}={value}"):
            continue
        if not nested or section not in Settings.model_fields:
            raise UsageError(f"unknown setting {name} in the environment{_nearest(section, Settings.model_fields)}")


def _explain(error: ErrorDetails) -> str:
    """Describe a validation error: name the field and, if the field is unknown, the most similar known name."""
    location = [str(part) for part in error["loc"]]
    name = ".".join(location)
    if error["type"] == "extra_forbidden":
        fields = _section(location[0]) if len(location) > 1 else Settings.model_fields
        return f"unknown setting {name}{_elsewhere(location[-1]) or _nearest(location[-1], fields)}"
    if error["type"] == "string_pattern_mismatch":
        return f"{name}: {KAFKA_NAME}"
    if error["type"] == "missing":
        names = [f"{name}.{key}" for key, field in _section(name).items() if field.is_required()] or [name]
        return f"{', '.join(names)} is required"
    message = error["msg"].removeprefix("Value error, ")
    return f"{name}: {message}" if name else message  # the messages of checks across sections name the field


def _section(name: str) -> dict[str, FieldInfo]:
    """Return the fields of a section. Empty if there is no such section."""
    section = Settings.model_fields[name].annotation if name in Settings.model_fields else None
    return section.model_fields if isinstance(section, type) and issubclass(section, BaseModel) else {}


def _elsewhere(key: str) -> str:
    found = [f"{section}.{key}" for section in Settings.model_fields if key in _section(section)]
    return f"; did you mean {' or '.join(found)}?" if found else ""


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(sorted(known))}"
