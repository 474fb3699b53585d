"""Damage to a run's account: its windows, manifests, positions and roll-backs."""

from collections.abc import Callable
from typing import Any

from damage import Damage, rewrite, rewrite_newest
from outputs import Log, roll_backs


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


def miscount_weights(log: Log) -> None:
    log.history[1] = rewrite(log.history[1], lambda manifest: manifest["weights"]["combined"].update(count=1))


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


def drop_history(log: Log) -> None:
    log.history.clear()


def drop_checkpoints(log: Log) -> None:
    log.checkpoints.clear()


def drop_newest(log: Log) -> None:
    del log.history[-1], log.metrics[-1]


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


def move_group(log: Log) -> None:
    place, (offset, rows) = next(iter(log.group.items()))
    log.group[place] = offset + 1, rows


def drop_group(log: Log) -> None:
    del log.group[next(iter(log.group))]


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
    miscount_weights: "manifest 2 counts other weights",
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
    go_back_further: "went back to another release than the last",
    go_back_unsaid: "discards .*, not {}",
    go_back_without_a_decision: "went back and refused nothing",
    go_back_for_a_release: "went back and refused nothing",
    name_an_older_release: "names another release than the last",
    discard_more: "discards",
    discard_less: "discards",
    discard_what_is_not_read_yet: "discards",
    discard_at_a_save: "manifest 1 discards .*, not {}",
    move_group: "the group offsets are not",
    drop_group: "the group offsets are not",
}
"""The message of the checker for each damage."""
