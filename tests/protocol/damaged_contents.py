"""Damage to what a run's account names: objects, kept states, chunks of releases and dead letters."""

from typing import Any

from checker import ERRORS
from damage import Damage, other_byte, other_value, rewrite_newest
from outputs import Log


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


def drop_earlier(log: Log) -> None:
    del log.objects[log.manifest["earlier"][0]["evaluation"]["key"]]


def change_earlier(log: Log) -> None:
    key = log.manifest["earlier"][-1]["object"]["key"]
    log.objects[key] = other_byte(log.objects[key])


def skip_an_earlier_release(log: Log) -> None:
    rewrite_newest(log, lambda manifest: manifest["earlier"].pop())


def list_another_object(log: Log) -> None:
    rewrite_newest(log, lambda manifest: manifest["earlier"][0].update(object=manifest["release"]["object"]))


def store_another_manifest(log: Log) -> None:
    key = log.manifest["release"]["manifest"]["key"]
    log.objects[key] = log.objects[key].replace(b'"float32"', b'"float16"')


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


DAMAGE: dict[Damage, str] = {
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
    give_up_released_state: "the state of release .* is not kept",
    drop_released_state: "is missing",
    keep_another_state: "keeps other states than were saved",
    name_another_release_of_a_state: "names other releases of its states",
    store_another_manifest: "the stored manifest of release .* is another one",
    drop_earlier: "is missing",
    change_earlier: "has another digest",
    skip_an_earlier_release: "lists the earlier releases",
    list_another_object: "otherwise than it was published",
    change_chunk: "the chunks are not ",
    drop_chunk: "the chunks are not ",
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
}
"""The message of the checker for each damage."""
