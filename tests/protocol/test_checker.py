"""The checker must see damage, or its silence elsewhere means nothing."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from checker import Log, Read, check, check_windows
from feed import Draft, Fed
from harness import Run


def other_byte(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def other_value(read: Read) -> Read:
    return read._replace(value=other_byte(read.value or b""))


def rewrite_window(log: Log, change: Callable[[dict[str, Any]], None]) -> None:
    window = log.windows[1]
    change(window)
    log.metrics[1] = log.metrics[1]._replace(value=json.dumps(window).encode())


def drop_window(log: Log) -> None:
    del log.metrics[1]


def double_window(log: Log) -> None:
    log.metrics.insert(1, log.metrics[1])


def swap_windows(log: Log) -> None:
    log.metrics[0], log.metrics[1] = log.metrics[1], log.metrics[0]


def miscount_records(log: Log) -> None:
    rewrite_window(log, lambda window: window.update(records=window["records"] + 1))


def miscount_split(log: Log) -> None:
    rewrite_window(log, lambda window: window["splits"].update(test=0))


def miscount_rejected(log: Log) -> None:
    rewrite_window(log, lambda window: window.update(rejected={}))


def move_span(log: Log) -> None:
    def change(window: dict[str, Any]) -> None:
        ((_, partitions),) = window["spans"].items()
        partitions["0"][1] += 1

    rewrite_window(log, change)


def drop_manifest(log: Log) -> None:
    del log.history[1]


def double_manifest(log: Log) -> None:
    log.history.insert(1, log.history[1])


def change_manifest(log: Log) -> None:
    value = (log.history[0].value or b"").replace(b'"program":"', b'"program":"another ')
    log.history[0] = log.history[0]._replace(value=value)


def drop_newest(log: Log) -> None:
    del log.history[-1], log.metrics[-1]


def drop_object(log: Log) -> None:
    del log.objects[log.manifest["state"]["url"]]


def change_object(log: Log) -> None:
    url = log.manifest["release"]["evaluation"]["url"]
    log.objects[url] = other_byte(log.objects[url])


def change_chunk(log: Log) -> None:
    log.weights[-1] = other_value(log.weights[-1])


def drop_dead_letter(log: Log) -> None:
    del log.dead_letters[0]


def double_dead_letter(log: Log) -> None:
    log.dead_letters.append(log.dead_letters[0])


def change_dead_letter(log: Log) -> None:
    place = next(i for i, letter in enumerate(log.dead_letters) if letter.value)
    log.dead_letters[place] = other_value(log.dead_letters[place])


def change_dead_letter_key(log: Log) -> None:
    log.dead_letters[0] = log.dead_letters[0]._replace(key=b"another")


def change_reason(log: Log) -> None:
    name = "__connect.errors.exception.class.name"
    headers = [(n, b"no_label" if n == name else v) for n, v in log.dead_letters[0].headers]
    log.dead_letters[0] = log.dead_letters[0]._replace(headers=headers)


def move_group(log: Log) -> None:
    log.group[next(iter(log.group))] += 1


Damage = Callable[[Log], None]

DAMAGE: dict[Damage, str] = {
    drop_window: "not one window for each manifest",
    double_window: "not one window for each manifest",
    swap_windows: "not one window for each manifest",
    miscount_records: "window 2 counts",
    miscount_split: "window 2 has",
    miscount_rejected: "window 2 rejects",
    move_span: "window 2 covers other offsets",
    drop_manifest: "sequences are not",
    double_manifest: "sequences are not",
    change_manifest: "the chain is broken",
    drop_newest: "the newest manifest is not",
    drop_object: "is missing",
    change_object: "has another digest",
    change_chunk: "the chunks are not the release",
    drop_dead_letter: "are not the rejected records",
    double_dead_letter: "is in the dead letters twice",
    change_dead_letter: "has other bytes",
    change_dead_letter_key: "has another key",
    change_reason: "has another reason",
    move_group: "the group offsets are not",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_damage_is_seen(finished: tuple[Run, Log], damage: Damage) -> None:
    run, log = finished
    damaged = copy.deepcopy(log)
    damage(damaged)
    with pytest.raises(AssertionError, match=DAMAGE[damage]):
        check(damaged, run.fed)


@pytest.mark.parametrize("step", [-1, 1], ids=["overlap", "gap"])
def test_windows_that_do_not_join_are_seen(finished: tuple[Run, Log], step: int) -> None:
    run, log = finished
    damaged = copy.deepcopy(log)
    for reads in (damaged.metrics, damaged.history):
        document = json.loads(reads[1].value or b"")
        document["spans"][run.input]["0"][0] += step
        reads[1] = reads[1]._replace(value=json.dumps(document).encode())
    with pytest.raises(AssertionError, match="window 2 begins at"):
        check_windows(damaged, run.fed)


def test_a_record_that_nobody_counted_is_seen(finished: tuple[Run, Log]) -> None:
    run, log = finished
    stray = Fed(run.input, 0, run.fed[-1].offset, Draft(None, b"", [], "no_image"))
    with pytest.raises(AssertionError, match="rejects"):
        check(log, [*run.fed, stray])
