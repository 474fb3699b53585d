"""A registry is a dict from name to class or function; `package.module:name` reaches a user's own."""

import difflib
import importlib
from collections.abc import Mapping
from typing import TypeVar

from stream_learner.errors import UsageError

T = TypeVar("T")


def lookup(registry: Mapping[str, T], name: str, setting: str) -> T:
    """The entry called `name`. Raises UsageError, which names the setting and what is known."""
    if name in registry:
        return registry[name]
    module, colon, attribute = name.partition(":")
    if colon:
        if not module or module.startswith("."):
            raise UsageError(f"{setting} = {name!r} is no `package.module:name`")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise UsageError(f"{setting} = {name!r} cannot be imported: {error}") from None
    near = difflib.get_close_matches(name, registry, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(registry))}"
    raise UsageError(f"{setting} = {name!r} is unknown; {hint}")
