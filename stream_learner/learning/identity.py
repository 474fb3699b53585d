"""Settings that a saved state must match to be resumed."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from stream_learner.config import ModelSettings, Settings
from stream_learner.contract.manifest import ModelSpec, digest
from stream_learner.errors import StateError
from stream_learner.formats.labels import LabelRules
from stream_learner.learning.classes import check_room
from stream_learner.learning.spec import spec_of

STATE_FORMAT = 5
ONE_SHARD = {"shards": 1}  # in the identity of a state that names no number
# Sections whose settings affect what is learned from given batches.
DECIDING = {
    "batch",
    "drift",
    "held_out",
    "input",
    "labels",
    "learning",
    "memory",
    "model",
    "release",
    "split",
    "weights",
}
# Exceptions. These settings of `[batch]` and `[input]` only decide which records form a batch, and the ledger lists the
# records. The manifest's `Arithmetic` records `device` and `threads` of `[learning]`. These settings of `[release]`
# affect only publishing. The digest has all other exceptions in another form: label rules and replay size as they take
# effect, `model.weights` as the file's digest, and `model.freeze` as `frozen`.
NOT_DECIDING: dict[str, set[str]] = {
    "batch": {"linger_s", "max_span"},
    "input": {"topics", "tombstones", "on_lost"},
    "labels": {"allowed", "aliases"},
    "learning": {"device", "threads"},
    "memory": {"replay_size"},
    "model": {"weights", "freeze"},
    "release": {"inline_max_bytes", "formats", "format_wait_s", "keep", "keep_days"},
}


def identity(settings: Settings) -> dict[str, Any]:
    """Return the settings that a saved state must match to be resumed.

    Raises UsageError when the file of `model.weights` cannot be read.
    """
    model = settings.model
    return {
        "format": STATE_FORMAT,
        "model": model.model_dump(exclude={"max_classes", "weights", "freeze"}) | {"frozen": model.frozen},
        "model.weights": _file_digest(model.weights) if model.weights else None,
        "seed": settings.run.seed,
        **({"shards": settings.run.shards} if settings.run.shards > 1 else {}),
        **(_steps(settings) if model.head == "linear" else {}),
    }


def _file_digest(path: Path) -> str:
    from stream_learner.networks.weights import read  # slow, because it imports torch

    return digest(read(path))


def _steps(settings: Settings) -> dict[str, Any]:
    """Return the identity's settings of optimizer steps. They do not apply to a solved head."""
    learning = settings.learning
    return {
        "strategy": learning.strategy,
        "optimizer": learning.optimizer,
        "average": learning.average_decay > 0,
    }


def settings_digest(settings: Settings, identity: dict[str, Any]) -> str:
    """Return the digest of the settings that determine what is learned from given batches.

    `identity` is the result of `identity(settings)`. Raises UsageError when `[labels]` contradicts itself.
    """
    rules = LabelRules.from_settings(settings.labels)
    document = {
        "identity": identity,
        "settings": settings.model_dump(mode="json", include=DECIDING, exclude=NOT_DECIDING),
        "labels.allowed": rules.allowed and sorted(rules.allowed),
        "labels.aliases": dict(rules.aliases),
        "memory.replay_size": settings.replay_size,
    }
    # Sections on which a state of the default settings does not depend.
    if settings.served.evaluate:
        document["served"] = settings.served.model_dump(mode="json")
    if settings.prequential.share < 1:
        document["prequential"] = settings.prequential.model_dump(mode="json")
    return digest(json.dumps(document, sort_keys=True).encode())


def check_fits(document: Mapping[str, Any], wanted: dict[str, Any], settings: Settings) -> None:
    """Raise ValueError if a saved state does not match the identity `wanted`. The message names the differences.

    Also raise ValueError if the state has more classes or longer labels than `settings` allow.
    """
    found, wanted = {**ONE_SHARD, **document}, ONE_SHARD | wanted
    if differing := [line for name, value in wanted.items() for line in _differing(name, found.get(name), value)]:
        raise ValueError("; ".join(differing))
    check_room(document, settings)


def check_network(found: ModelSpec, settings: ModelSettings) -> None:
    """Raise StateError if a manifest's release has another network than the settings choose."""
    wanted = spec_of(settings, found.arguments.classes)
    if differing := [*_differing("model", _by_setting(found), _by_setting(wanted))]:
        raise StateError(
            f"the release that the manifest names does not fit the settings: {'; '.join(differing)}. Restore these "
            "settings, or choose a new run.id"
        )


def _by_setting(spec: ModelSpec) -> dict[str, Any]:
    return {"name": spec.name} | msgspec.structs.asdict(spec.arguments)


def _differing(name: str, found: Any, wanted: Any) -> Iterator[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in found | wanted:
            yield from _differing(f"{name}.{key}", found.get(key), wanted.get(key))
    elif found != wanted:
        yield f"its {name} is {found!r}, the settings say {wanted!r}"
