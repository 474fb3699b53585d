"""What a state and the settings must agree on."""

from collections.abc import Iterator
from typing import Any

from stream_learner.config import Settings
from stream_learner.learning.models.weights import file_digest

STATE_FORMAT = 3


def identity(settings: Settings) -> dict[str, Any]:
    """What a state must agree on with the settings to be gone on from. Raises UsageError when the file of
    `model.weights` cannot be read."""
    model = settings.model
    return {
        "format": STATE_FORMAT,
        "model": model.model_dump(exclude={"max_classes", "weights", "freeze"}) | {"frozen": model.frozen},
        "model.weights": file_digest(model.weights) if model.weights else None,
        "seed": settings.run.seed,
    } | (_steps(settings) if model.head == "linear" else {})


def _steps(settings: Settings) -> dict[str, Any]:
    """Of what takes steps; a head that is solved takes none."""
    learning = settings.learning
    return {
        "strategy": learning.strategy,
        "optimizer": learning.optimizer,
        "average": learning.average_decay > 0,
    }


def check_fits(document: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises ValueError, which names what differs, when a state belongs to settings of another identity than
    `wanted`."""
    if differing := [line for name, value in wanted.items() for line in _differing(name, document.get(name), value)]:
        raise ValueError("; ".join(differing))


def _differing(name: str, found: Any, wanted: Any) -> Iterator[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in found | wanted:
            yield from _differing(f"{name}.{key}", found.get(key), wanted.get(key))
    elif found != wanted:
        yield f"its {name} is {found!r}, the settings say {wanted!r}"
