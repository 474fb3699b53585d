"""Ways to damage what a run published, each as a change of its log."""

import json
from collections.abc import Callable
from typing import Any

from outputs import Log, Read

Damage = Callable[[Log], None]


def other_byte(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def other_value(read: Read) -> Read:
    return read._replace(value=other_byte(read.value or b""))


def rewrite(read: Read, change: Callable[[dict[str, Any]], Any]) -> Read:
    document = json.loads(read.value or b"")
    change(document)
    return read._replace(value=json.dumps(document).encode())


def rewrite_newest(log: Log, change: Callable[[dict[str, Any]], Any]) -> None:
    log.checkpoints[-1] = log.history[-1] = rewrite(log.history[-1], change)
