"""The checker must find every kind of damage. Otherwise its silence in other tests means nothing."""

import copy
import hashlib
import json
import re
from collections.abc import Callable
from threading import Timer
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from checker import ERRORS, Log, Read, check, check_drained, compare_states, roll_backs, violations
from confluent_kafka import Producer
from feed import Draft, Fed, client
from harness import NewRun, Run


def other_byte(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def other_value(read: Read) -> Read:
    return read._replace(value=other_byte(read.value or b""))


def rewrite(read: Read, change: Callable[[dict[str, Any]], Any]) -> Read:
    document = json.loads(read.value or b"")
    change(document)
    return read._replace(value=json.dumps(document).encode())


def rewrite_window(log: Log, change: Callable[[dict[str, Any]], None]) -> None:
    log.metrics[1] = rewrite(log.metrics[1], change)


def move_start(log: Log, step: int) -> None:
    def change(document: dict[str, Any]) -> None:
        ((_, partitions),) = document["spans"].items()
        partitions["0"][0] += step

    rewrite_window(log, change)
    log.history[1] = rewrite(log.history[1], change)


def leave_gap(log: Log) -> None:
    move_start(log, 1)


def overlap(log: Log) -> None:
    move_start(log, -1)


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


def miscount_rejected_of_a_topic(log: Log) -> None:
    rewrite_window(log, lambda window: window.update(rejected_by_topic={}))


def miscount_tombstones(log: Log) -> None:
    rewrite_window(log, lambda window: window.update(tombstones=window["tombstones"] + 1))


def miscount_learned(log: Log) -> None:
    rewrite_window(log, lambda window: window.update(learned=window["learned"] - 1))


def move_records_to_another_split(log: Log) -> None:
    def change(window: dict[str, Any]) -> None:
        moved = window["splits"]["train"] // 2  # more than the records whose split the checker does not know
        window["splits"]["train"] -= moved
        window["splits"]["test"] += moved
        window["learned"] -= moved

    rewrite_window(log, change)


def move_span(log: Log) -> None:
    def change(window: dict[str, Any]) -> None:
        ((_, partitions),) = window["spans"].items()
        partitions["0"][1] += 1

    rewrite_window(log, change)


def lose_in_window(log: Log) -> None:
    rewrite_window(log, say_one_was_lost)


def lose_what_is_there(log: Log) -> None:
    lose_in_window(log)
    log.history[1] = rewrite(log.history[1], say_one_was_lost)


def say_one_was_lost(document: dict[str, Any]) -> None:
    ((topic, partitions),) = document["spans"].items()
    start, _ = partitions["0"]
    document["lost"] = {topic: {"0": [[start, start + 1]]}}


def cover_another_partition(log: Log) -> None:
    def change(document: dict[str, Any]) -> None:
        ((_, partitions),) = document["spans"].items()
        partitions["9"] = [0, 1]

    rewrite_window(log, change)
    log.history[1] = rewrite(log.history[1], change)


def drop_manifest(log: Log) -> None:
    del log.history[1]


def double_manifest(log: Log) -> None:
    log.history.insert(1, log.history[1])


def change_manifest(log: Log) -> None:
    value = (log.history[0].value or b"").replace(b'"program":"', b'"program":"another ')
    log.history[0] = log.history[0]._replace(value=value)


def put_before_the_first(log: Log) -> None:
    log.history[0] = rewrite(log.history[0], lambda manifest: manifest.update(predecessor="sha256:0"))


def move_position(log: Log) -> None:
    def change(manifest: dict[str, Any]) -> None:
        ((_, partitions),) = manifest["positions"].items()
        partitions["0"] += 1

    log.history[1] = rewrite(log.history[1], change)


def drop_position(log: Log) -> None:
    rewrite_newest(log, lambda manifest: [partitions.pop("0") for partitions in manifest["positions"].values()])


def rewrite_newest(log: Log, change: Callable[[dict[str, Any]], Any]) -> None:
    log.checkpoints[-1] = log.history[-1] = rewrite(log.history[-1], change)


def drop_history(log: Log) -> None:
    log.history.clear()


def drop_checkpoints(log: Log) -> None:
    log.checkpoints.clear()


def drop_newest(log: Log) -> None:
    del log.history[-1], log.metrics[-1]


def drop_state(log: Log) -> None:
    del log.objects[log.manifest["state"]["key"]]


def drop_kept(log: Log) -> None:
    del log.objects[log.manifest["kept"][0]["object"]["key"]]


def drop_part(log: Log) -> None:
    del log.objects[log.manifest["parts"][0]["key"]]


def change_part(log: Log) -> None:
    key = log.manifest["parts"][-1]["key"]
    log.objects[key] = other_byte(log.objects[key])


def forget_part(log: Log) -> None:
    rewrite_newest(log, lambda manifest: manifest["kept"][-1]["parts"].pop())


def name_a_file_elsewhere(log: Log) -> None:
    key = f"{log.manifest['run_id']}/../victim"
    log.objects[key] = b""
    rewrite_newest(log, lambda manifest: manifest["parts"].append({**manifest["parts"][0], "key": key}))


def add_part(log: Log) -> None:
    rewrite_newest(log, lambda manifest: manifest["parts"].append(manifest["parts"][0]))


def drop_release(log: Log) -> None:
    del log.objects[log.manifest["release"]["object"]["key"]]


def change_evaluation(log: Log) -> None:
    key = log.manifest["release"]["evaluation"]["key"]
    log.objects[key] = other_byte(log.objects[key])


def cut_state(log: Log) -> None:
    key = log.manifest["state"]["key"]
    log.objects[key] = log.objects[key][:-1]


def overwrite_old_state(log: Log) -> None:
    log.objects[log.manifests[0]["state"]["key"]] = b"another's"


def rewrite_roll_back(log: Log, change: Callable[[dict[str, Any]], Any]) -> None:
    place = log.manifests.index(roll_backs(log)[-1])
    log.history[place] = rewrite(log.history[place], change)


def go_back_further(log: Log) -> None:
    rewrite_roll_back(log, lambda manifest: manifest.update(rolled_back_to=manifest["rolled_back_to"] - 1))


def go_back_unsaid(log: Log) -> None:
    rewrite_roll_back(log, lambda manifest: manifest.update(rolled_back_to=None))


def go_back_without_a_decision(log: Log) -> None:
    rewrite_roll_back(log, lambda manifest: manifest.update(decision=None))


def go_back_for_a_release(log: Log) -> None:
    rewrite_roll_back(log, lambda manifest: manifest["decision"].update(released=True))


def name_an_older_release(log: Log) -> None:
    rewrite_roll_back(log, lambda manifest: manifest["release"].update(sequence=1))


def discard_more(log: Log) -> None:
    move_discarded(log, -1, 0)


def discard_less(log: Log) -> None:
    move_discarded(log, 1, 0)


def discard_what_is_not_read_yet(log: Log) -> None:
    move_discarded(log, 0, 1)


def move_discarded(log: Log, start: int, end: int) -> None:
    def change(manifest: dict[str, Any]) -> None:
        ((_, partitions),) = manifest["discarded"].items()
        for span in partitions.values():
            span[:] = span[0] + start, span[1] + end

    rewrite_roll_back(log, change)


def discard_at_a_save(log: Log) -> None:
    discarded = roll_backs(log)[-1]["discarded"]
    log.history[0] = rewrite(log.history[0], lambda manifest: manifest.update(discarded=discarded))


def give_up_released_state(log: Log) -> None:
    def change(manifest: dict[str, Any]) -> None:
        release = manifest["release"]["sequence"]
        manifest["kept"] = [kept for kept in manifest["kept"] if kept["sequence"] != release]

    rewrite_newest(log, change)


def drop_released_state(log: Log) -> None:
    release = log.manifest["release"]["sequence"]
    (state,) = (kept["object"] for kept in log.manifest["kept"] if kept["sequence"] == release)
    del log.objects[state["key"]]


def keep_another_state(log: Log) -> None:
    rewrite_newest(log, lambda manifest: manifest["kept"][0].update(object=manifest["state"]))


def name_another_release_of_a_state(log: Log) -> None:
    rewrite_newest(log, lambda manifest: manifest["kept"][0].update(release=None))


def drop_chunk(log: Log) -> None:
    del log.weights[-1]


def change_chunk(log: Log) -> None:
    log.weights[-1] = other_value(log.weights[-1])


def double_chunk(log: Log) -> None:
    log.weights.append(log.weights[-1])


def add_chunk(log: Log) -> None:
    log.weights.append(log.weights[-1]._replace(offset=log.weights[-1].offset + 1))


def add_chunk_at_the_front(log: Log) -> None:
    log.weights.insert(0, log.weights[0]._replace(offset=log.weights[0].offset - 1))


def swap_old_chunks(log: Log) -> None:
    log.weights[:2] = reversed(log.weights[:2])


def drop_dead_letter(log: Log) -> None:
    del log.dead_letters[0]


def double_dead_letter(log: Log) -> None:
    log.dead_letters.append(log.dead_letters[0])


def change_dead_letter(log: Log) -> None:
    place = next(i for i, letter in enumerate(log.dead_letters) if letter.value)
    log.dead_letters[place] = other_value(log.dead_letters[place])


def change_dead_letter_key(log: Log) -> None:
    log.dead_letters[0] = log.dead_letters[0]._replace(key=b"another")


def change_dead_letter_header(log: Log) -> None:
    place = next(i for i, letter in enumerate(log.dead_letters) if letter.headers[0][0] == "label")
    rewrite_header(log, "label", b"another", place)


def bring_oversized_value_back(log: Log) -> None:
    place = next(i for i, letter in enumerate(log.dead_letters) if ("truncated", b"true") in letter.headers)
    log.dead_letters[place] = log.dead_letters[place]._replace(value=b"some of it")


def rewrite_header(log: Log, name: str, value: bytes, place: int = 0) -> None:
    headers = [(n, value if n == name else v) for n, v in log.dead_letters[place].headers]
    log.dead_letters[place] = log.dead_letters[place]._replace(headers=headers)


def change_origin(log: Log) -> None:
    rewrite_header(log, ERRORS + "offset", b"0")


def drop_origin(log: Log) -> None:
    drop_header(log, ERRORS + "offset")


def drop_stage(log: Log) -> None:
    drop_header(log, ERRORS + "stage")


def drop_header(log: Log, name: str) -> None:
    headers = [header for header in log.dead_letters[0].headers if header[0] != name]
    log.dead_letters[0] = log.dead_letters[0]._replace(headers=headers)


def break_origin(log: Log) -> None:
    rewrite_header(log, ERRORS + "offset", b"\xff")


def change_stage(log: Log) -> None:
    rewrite_header(log, ERRORS + "stage", b"another")


def change_reason(log: Log) -> None:
    rewrite_header(log, ERRORS + "exception.class.name", b"no_label")


def drop_message(log: Log) -> None:
    rewrite_header(log, ERRORS + "exception.message", b"")


def add_error_header(log: Log) -> None:
    log.dead_letters[0].headers.append((ERRORS + "another", b"one"))


def move_group(log: Log) -> None:
    log.group[next(iter(log.group))] += 1


def drop_group(log: Log) -> None:
    del log.group[next(iter(log.group))]


Damage = Callable[[Log], None]

DAMAGE: dict[Damage, str] = {
    drop_window: "not one window for each manifest",
    double_window: "not one window for each manifest",
    swap_windows: "not one window for each manifest",
    leave_gap: "window 2 begins at",
    overlap: "window 2 begins at",
    move_span: "window 2 covers other offsets",
    miscount_records: "window 2 counts",
    miscount_split: "window 2 has",
    miscount_rejected: "window 2 rejects",
    miscount_rejected_of_a_topic: "window 2 rejects .* by topic",
    miscount_tombstones: "deletion markers, not",
    miscount_learned: "window 2 did not learn",
    move_records_to_another_split: "window 2 has too few",
    lose_in_window: "window 2 lost other offsets than its manifest",
    lose_what_is_there: "window 2 does not say which records of .* fell off retention",
    cover_another_partition: "the windows do not end at",
    drop_manifest: "sequences are not",
    double_manifest: "sequences are not",
    change_manifest: "the chain is broken",
    put_before_the_first: "the first manifest has a predecessor",
    move_position: "manifest 2 does not stand",
    drop_position: "the windows do not end at",
    drop_newest: "the newest manifest is not",
    drop_history: "there is no manifest",
    drop_checkpoints: "there is no manifest",
    drop_state: "is missing",
    drop_kept: "is missing",
    drop_release: "is missing",
    drop_part: "is missing",
    change_part: "has another digest",
    forget_part: "needs sha256:.*, which it does not name",
    name_a_file_elsewhere: "is not in the run's folder",
    add_part: "names parts of no state",
    change_evaluation: "has another digest",
    cut_state: "has another digest",
    overwrite_old_state: "was overwritten",
    go_back_further: "went back to another release than the last",
    go_back_unsaid: "discards .*, not {}",
    go_back_without_a_decision: "went back and refused nothing",
    go_back_for_a_release: "went back and refused nothing",
    name_an_older_release: "names another release than the last",
    discard_more: "discards",
    discard_less: "discards",
    discard_what_is_not_read_yet: "discards",
    discard_at_a_save: "manifest 1 discards .*, not {}",
    give_up_released_state: "the state of release .* is not kept",
    drop_released_state: "is missing",
    keep_another_state: "keeps other states than were saved",
    name_another_release_of_a_state: "names other releases of its states",
    change_chunk: "the chunks are not the release",
    drop_chunk: "the chunks are not the release",
    double_chunk: "the weights topic holds other chunks",
    add_chunk: "the weights topic holds other chunks",
    add_chunk_at_the_front: "the weights topic holds other chunks",
    swap_old_chunks: "the weights topic holds other chunks",
    drop_dead_letter: "is not in the dead letters",
    double_dead_letter: "is in the dead letters twice",
    change_origin: "but was not rejected",
    change_dead_letter: "has other bytes",
    change_dead_letter_key: "has another key",
    change_dead_letter_header: "has other headers",
    bring_oversized_value_back: "has other bytes",
    drop_origin: "does not say where it is from",
    break_origin: "does not say where it is from",
    change_stage: "has another stage",
    drop_stage: "has other error headers",
    change_reason: "has another reason",
    drop_message: "has no message",
    add_error_header: "has other error headers",
    move_group: "the group offsets are not",
    drop_group: "the group offsets are not",
}


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
