"""The checker must find every kind of damage. Otherwise its silence in other tests means nothing."""

import copy
import hashlib
import json
import re
from collections.abc import Callable
from threading import Timer
from typing import Any

import damaged_accounts
import damaged_contents
import numpy as np
import pytest
import safetensors.numpy
from checker import ERRORS, check, check_drained, compare_states, violations
from confluent_kafka import Producer
from damage import Damage, rewrite, rewrite_newest
from damaged_accounts import (
    change_manifest,
    double_manifest,
    drop_checkpoints,
    drop_window,
    go_back_unsaid,
    leave_gap,
    miscount_records,
    move_group,
    overlap,
)
from damaged_contents import double_dead_letter, drop_dead_letter
from feed import Draft, Fed, client, mixed
from harness import NewRun, Run
from outputs import Log

from stream_learner.local.broker import Broker

ROW = ERRORS + "row"
DAMAGE: dict[Damage, str] = damaged_accounts.DAMAGE | damaged_contents.DAMAGE


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_damage_is_seen(finished: tuple[Run, Log], damage: Damage) -> None:
    run, log = finished
    damaged = copy.deepcopy(log)
    damage(damaged)
    with pytest.raises(AssertionError, match=DAMAGE[damage]):
        check(damaged, run.fed)


def test_what_an_open_transaction_hides_is_waited_for(new_run: NewRun) -> None:
    run = new_run()
    stranger = Producer(client(run.broker.bootstrap_servers) | {"transactional.id": f"{run.id}.stranger"})
    stranger.init_transactions()
    stranger.begin_transaction()
    stranger.produce(f"{run.id}.metrics", b"late")
    stranger.flush()
    commit = Timer(0.5, stranger.commit_transaction)
    commit.start()
    assert [read.value for read in run.published().metrics] == [b"late"]
    commit.join()


def test_damage_of_several_kinds_is_seen_at_once(finished: tuple[Run, Log]) -> None:
    run, log = finished
    damaged = copy.deepcopy(log)
    for damage in (drop_dead_letter, change_manifest, move_group):
        damage(damaged)
    assert len(violations(damaged, run.fed)) == 3


LOSSES = [drop_window, leave_gap, drop_dead_letter]
REPETITIONS = [overlap, miscount_records, double_dead_letter, double_manifest]


@pytest.mark.parametrize("damage", LOSSES, ids=lambda damage: damage.__name__)
def test_what_is_lost_is_counted(finished: tuple[Run, Log], damage: Damage) -> None:
    lost, _ = totals(finished, damage)
    _, log = finished
    assert lost == (log.windows[1]["records"] if damage is drop_window else 1)


@pytest.mark.parametrize("damage", REPETITIONS, ids=lambda damage: damage.__name__)
def test_what_is_there_twice_is_counted(finished: tuple[Run, Log], damage: Damage) -> None:
    _, twice = totals(finished, damage)
    assert twice == 1


def totals(finished: tuple[Run, Log], damage: Damage) -> tuple[int, int]:
    """Records lost, and taken twice."""
    run, log = finished
    damaged = copy.deepcopy(log)
    damage(damaged)
    found = violations(damaged, run.fed)
    return sum(v.lost for v in found), sum(v.twice for v in found)


def test_a_record_that_nobody_counted_is_seen(finished: tuple[Run, Log]) -> None:
    run, log = finished
    stray = Fed(run.input, 0, run.fed[-1].offset, Draft(None, b"", [], "no_image"))
    with pytest.raises(AssertionError, match="rejects"):
        check(log, [*run.fed, stray])


def test_what_was_not_read_is_counted(finished: tuple[Run, Log]) -> None:
    run, log = finished
    assert not [*check_drained(log, run.fed)]
    end = run.ends()[run.input, 0]
    late = [Fed(run.input, partition, end, run.fed[0].draft) for partition in (0, 9)]
    assert [violation.lost for violation in check_drained(log, [*run.fed, *late])] == [2]
    damaged = copy.deepcopy(log)
    drop_checkpoints(damaged)
    assert [violation.lost for violation in check_drained(damaged, run.fed)] == [len(run.fed)]


def change_tensor(log: Log) -> None:
    def change(tensors: dict[str, np.ndarray], _: dict[str, str]) -> None:
        tensors["memory/keys"] = tensors["memory/keys"] + 1

    rewrite_state(log, change)


def change_document(log: Log) -> None:
    rewrite_state(log, lambda _, metadata: metadata.update(document="another"))


def rewrite_state(log: Log, change: Callable[[dict[str, np.ndarray], dict[str, str]], None]) -> None:
    """Changes the newest state, and the manifest that names it."""
    reference = log.manifest["state"]
    data = log.objects[reference["key"]]
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    tensors, metadata = safetensors.numpy.load(data), header["__metadata__"]
    change(tensors, metadata)
    data = log.objects[reference["key"]] = safetensors.numpy.save(tensors, metadata)
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    rewrite_newest(log, lambda manifest: manifest["state"].update(size=len(data), digest=digest))


def name_another_state(log: Log) -> None:
    rewrite_newest(log, lambda manifest: manifest["state"].update(key="nowhere", digest="sha256:0"))


def name_another_release(log: Log) -> None:
    rewrite_newest(log, lambda manifest: manifest["release"]["object"].update(digest="sha256:0"))


def forget_release(log: Log) -> None:
    rewrite_newest(log, lambda manifest: manifest.update(release=None))


DIFFERENCES: dict[Damage, str] = {
    change_tensor: "the state is another: memory/keys$",
    change_document: "the state is another: its document$",
    name_another_state: "the state is another",
    name_another_release: "the release is another",
    forget_release: "the release is another",
    go_back_unsaid: "training went back elsewhere",
    drop_checkpoints: "there is no manifest",
}


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda difference: difference.__name__)
def test_a_difference_of_two_runs_is_seen(finished: tuple[Run, Log], difference: Damage) -> None:
    _, log = finished
    other = copy.deepcopy(log)
    assert not [*compare_states(log, other)]
    difference(other)
    for pair in ((log, other), (other, log)):
        (violation,) = compare_states(*pair)
        assert re.match(DIFFERENCES[difference], violation.what)


@pytest.fixture(scope="module")
def inside(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Log]:
    """Return a run whose messages hold many records each, and its output. Its batches end inside messages."""
    settings = {"batch.size": 16, "checkpoint.every_records": 50}
    run = Run(broker, tmp_path_factory.mktemp("inside"), 2, settings, rows=37)
    run.feed(mixed(400))
    return run, run.finish(run.start())


def first_row(log: Log) -> int:
    """Return the place of the first dead letter of a row that is not the first of its message."""
    return next(i for i, letter in enumerate(log.dead_letters) if dict(letter.headers).get(ROW, b"0") != b"0")


def learn_a_row_more(log: Log) -> None:
    def change(manifest: dict[str, Any]) -> None:
        for partitions in manifest["rows"].values():
            partitions.update({partition: rows + 1 for partition, rows in partitions.items()})

    place = next(i for i, manifest in enumerate(log.manifests) if manifest["rows"])
    log.history[place] = rewrite(log.history[place], change)


def drop_row(log: Log) -> None:
    del log.dead_letters[first_row(log)]


def change_row(log: Log) -> None:
    letter = log.dead_letters[first_row(log)]
    place = next(i for i, other in enumerate(log.dead_letters) if ROW in dict(other.headers) and other != letter)
    log.dead_letters[place] = log.dead_letters[place]._replace(value=letter.value)


def number_row_otherwise(log: Log) -> None:
    damaged_contents.rewrite_header(log, ROW, b"0", first_row(log))


def cut_row(log: Log) -> None:
    place = first_row(log)
    letter = log.dead_letters[place]
    log.dead_letters[place] = letter._replace(value=(letter.value or b"")[:20])


def mirror_a_row_more(log: Log) -> None:
    place, (offset, rows) = next(iter(log.group.items()))
    log.group[place] = offset, rows + 1


ROW_DAMAGE: dict[Damage, str] = {
    cut_row: "has another row",
    mirror_a_row_more: "the group offsets are not",
    learn_a_row_more: "window .* counts .*, not",
    drop_row: "is not in the dead letters",
    change_row: "has another row",
    number_row_otherwise: "is in the dead letters, but was not rejected",
}


@pytest.mark.parametrize("damage", ROW_DAMAGE, ids=lambda damage: damage.__name__)
def test_damage_of_rows_is_seen(inside: tuple[Run, Log], damage: Damage) -> None:
    run, log = inside
    damaged = copy.deepcopy(log)
    damage(damaged)
    with pytest.raises(AssertionError, match=ROW_DAMAGE[damage]):
        check(damaged, run.fed)
