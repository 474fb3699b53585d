"""Checker of a run's published records: it finds every input record that is not accounted for exactly once.

It uses no code of the worker, but another Kafka client, plain JSON, plain files and HTTP.
"""

import json
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import safetensors.numpy
from envelopes import KEY, row, rows_in
from feed import LOST, MAX_RECORD_BYTES, TOMBSTONE, UNREADABLE, Draft, Fed
from outputs import At, Log, Place, Read, digest, inline, joined, matches, named_objects, of_earlier, places, roll_backs

SPLITS = ("train", "validation", "test")
ERRORS = "__connect.errors."

# Topic, partition and offset of a record, and its row if its message holds many records.
Origin = tuple[str, int, int, int | None]


class Violation(NamedTuple):
    """A fault, and the numbers of records that were lost or taken twice by it."""

    what: str
    lost: int = 0
    twice: int = 0


def check(log: Log, fed: Sequence[Fed]) -> None:
    """Assert that a log accounts for every fed record before the newest manifest's positions."""
    found = violations(log, fed)
    assert not found, "\n".join(violation.what for violation in found)


def violations(log: Log, fed: Sequence[Fed]) -> list[Violation]:
    """Return all faults of a log, given the fed records."""
    if not (log.checkpoints and log.history):
        return [Violation("there is no manifest")]
    return [
        *check_chain(log),
        *check_coverage(log, fed),
        *check_windows(log, fed),
        *check_objects(log.manifest, log.objects),
        *check_overwritten(log),
        *check_release(log),
        *check_earlier(log),
        *check_roll_backs(log),
        *check_dead_letters(log, fed),
        *check_positions(log),
    ]


def check_chain(log: Log) -> Iterator[Violation]:
    """Check the chain of manifests.

    Sequences are 1..n, once each. Each manifest names the digest of the one before, starts at its positions and keeps
    states of earlier ones. The newest manifest is the last of the history.
    """
    manifests = log.manifests
    sequences = [manifest["sequence"] for manifest in manifests]
    if sequences != list(range(1, len(manifests) + 1)):
        twice = len(sequences) - len(set(sequences))
        yield Violation(f"the history's sequences are not 1..n, each once: {_misfits(sequences)}", twice=twice)
    if manifests[0]["predecessor"] is not None:
        yield Violation("the first manifest has a predecessor")
    for before, after in pairwise(log.history):
        if json.loads(after.value or b"")["predecessor"] != digest(before.value):
            yield Violation(f"the chain is broken at offset {after.offset} of the history")
    for before, after in pairwise(manifests):
        ends = places(before["positions"]) | {place: span[1] for place, span in places(after["spans"]).items()}
        if not ends.items() <= places(after["positions"]).items():
            yield Violation(f"manifest {after['sequence']} does not stand at the end of its spans")
    states = {manifest["sequence"]: manifest["state"] for manifest in manifests}
    releases = {m["sequence"]: m["release"] and m["release"]["sequence"] for m in manifests}
    for manifest in manifests:
        if any(kept["object"] != states.get(kept["sequence"]) for kept in manifest["kept"]):
            yield Violation(f"manifest {manifest['sequence']} keeps other states than were saved")
        if any(kept["release"] != releases.get(kept["sequence"]) for kept in manifest["kept"]):
            yield Violation(f"manifest {manifest['sequence']} names other releases of its states than they had")
    if log.checkpoints[-1].value != log.history[-1].value:
        yield Violation("the newest manifest is not the history's last")


def _misfits(sequences: list[int]) -> list[tuple[int, int]]:
    return [(before, after) for before, after in pairwise([0, *sequences]) if after != before + 1]


def check_coverage(log: Log, fed: Sequence[Fed]) -> Iterator[Violation]:
    """Check that every fed record is in the spans of one window."""
    covered: Counter[tuple[Place, At]] = Counter()
    records, rows, ends = _fates(fed), _rows(log), _ends(log.manifest)
    for window in log.windows:
        for place, start, end in _stretches(window, rows):
            covered.update((place, at) for at, _ in _between(records.get(place, []), start, end))
    for record in fed:
        place, at = (record.topic, record.partition), _at(record)
        times = covered[place, at]
        if times == 0 and at < ends.get(place, (0, 0)):
            yield Violation(f"{place} {at} is in no window", lost=1)
        if times > 1:
            yield Violation(f"{place} {at} is in {times} windows", twice=1)


def check_windows(log: Log, fed: Sequence[Fed]) -> Iterator[Violation]:
    """Check that windows cover each partition without gap or overlap up to its position, and count the fed records."""
    records, rows = _fates(fed), _rows(log)
    reached: dict[Place, At] = dict.fromkeys(records, (0, 0))
    weighted, unknown = 0, False
    windows, manifests = log.windows, log.manifests
    if [(w["epoch"], w["sequence"]) for w in windows] != [(m["epoch"], m["sequence"]) for m in manifests]:
        yield Violation("not one window for each manifest")
    for window, manifest in zip(windows, manifests, strict=False):
        where = f"window {window['sequence']}"
        if window["spans"] != manifest["spans"]:
            yield Violation(f"{where} covers other offsets than its manifest")
        if window["lost"] != manifest["lost"]:
            yield Violation(f"{where} lost other offsets than its manifest")
        lost = {(place, o) for place, spans in places(window["lost"]).items() for span in spans for o in range(*span)}
        expected: Counter[str | None] = Counter()
        for place, start, end in _stretches(window, rows):
            if start != reached.get(place, (0, 0)):
                yield Violation(f"{where} begins at {place} {start}, not {reached.get(place, (0, 0))}")
            reached[place] = end
            fates = _between(records.get(place, []), start, end)
            expected.update(fate for _, fate in fates)
            fell_off = {offset for (offset, _), fate in fates if fate == LOST}
            if fell_off != {offset for at, offset in lost if at == place}:
                yield Violation(f"{where} does not say which records of {place} fell off retention")
        weighted += window["weights"].get("combined", {"count": 0})["count"]
        unknown |= "weights" in window["omitted"]
        if manifest["weights"].get("combined", {"count": 0})["count"] != weighted and not unknown:
            yield Violation(f"manifest {manifest['sequence']} counts other weights than the windows up to it")
        del expected[LOST]
        yield from _check_counts(window, expected)
    if reached != {place: end for place, end in _ends(log.manifest).items() if end > (0, 0) or place in reached}:
        yield Violation("the windows do not end at the manifest's positions")


def _at(record: Fed) -> At:
    return record.offset, record.row or 0


def _fates(fed: Iterable[Fed]) -> dict[Place, list[tuple[At, str | None]]]:
    """Return the fates of the records of each partition, in order."""
    fates: dict[Place, dict[At, str | None]] = defaultdict(dict)
    for record in fed:
        fates[record.topic, record.partition][_at(record)] = record.draft.fate
    return {place: sorted(of_place.items(), key=itemgetter(0)) for place, of_place in fates.items()}


def _between(fates: list[tuple[At, str | None]], start: At, end: At) -> list[tuple[At, str | None]]:
    first, last = (bisect_left(fates, at, key=itemgetter(0)) for at in (start, end))
    return fates[first:last]


def _rows(log: Log) -> dict[int, dict[Place, int]]:
    """Return, by sequence, the number of rows that were learned of the message at each position."""
    return {manifest["sequence"]: places(manifest["rows"]) for manifest in log.manifests}


def _ends(manifest: dict[str, Any]) -> dict[Place, At]:
    """Return where the next record of each partition is."""
    rows = places(manifest["rows"])
    return {place: (offset, rows.get(place, 0)) for place, offset in places(manifest["positions"]).items()}


def _stretches(window: dict[str, Any], rows: dict[int, dict[Place, int]]) -> Iterator[tuple[Place, At, At]]:
    """Yield where a window begins and ends in each of its partitions. `rows` are those of the manifests."""
    before, after = (rows.get(sequence, {}) for sequence in (window["sequence"] - 1, window["sequence"]))
    for place, (start, end) in places(window["spans"]).items():
        yield place, (start, before.get(place, 0)), (end, after.get(place, 0))


def _check_counts(window: dict[str, Any], expected: Counter[str | None]) -> Iterator[Violation]:
    """Check the counts of a window. `expected` has the number of records by fate."""
    where = f"window {window['sequence']}"
    if window["records"] != expected.total():
        more = window["records"] - expected.total()
        what = f"{where} counts {window['records']}, not {expected.total()}"
        yield Violation(what, lost=max(0, -more), twice=max(0, more))
    hashed = expected[None]
    rejected = {reason: count for reason, count in expected.items() if reason not in (None, TOMBSTONE, *SPLITS)}
    if window["rejected"] != rejected:
        yield Violation(f"{where} rejects {window['rejected']}, not {rejected}")
    by_topic: Counter[str] = Counter()
    for reasons in window["rejected_by_topic"].values():
        by_topic.update(reasons)
    if by_topic != rejected and "rejected_by_topic" not in window["omitted"]:
        yield Violation(f"{where} rejects {dict(by_topic)} by topic, not {rejected}")
    if window["tombstones"] != expected[TOMBSTONE]:
        yield Violation(f"{where} counts {window['tombstones']} deletion markers, not {expected[TOMBSTONE]}")
    surplus = {split: window["splits"].get(split, 0) - expected[split] for split in SPLITS}
    if min(surplus.values()) < 0:
        yield Violation(f"{where} has too few of a split: {surplus}")
    if sum(surplus.values()) != hashed:
        yield Violation(f"{where} has {surplus} over the known splits, not {hashed} in all")
    if window["learned"] != window["splits"].get("train", 0):
        yield Violation(f"{where} did not learn its training samples")


def check_objects(manifest: dict[str, Any], objects: dict[str, bytes]) -> Iterator[Violation]:
    """Check the objects that the newest manifest names.

    Each is present, has its digest, and holds tensors if its name says so. All parts of the kept states are named.
    The state of the last release is kept, because training may go back to it.
    """
    for reference in named_objects(manifest):
        key = reference["key"]
        if not key.startswith(f"{manifest['run_id']}/") or {"", ".", ".."} & {*key.split("/")}:
            yield Violation(f"{key} is not in the run's folder")
        elif key not in objects:
            yield Violation(f"{key} is missing")
        elif not matches(objects[key], reference):
            yield Violation(f"{key} has another digest")
        elif reference["key"].endswith(".safetensors") and not safetensors.numpy.load(objects[key]):
            yield Violation(f"{key} holds no tensors")
    for kept in manifest["kept"]:
        named = {manifest["parts"][place]["digest"] for place in kept["parts"]}
        if needed := _parts(objects.get(kept["object"]["key"], b"")) - named:
            yield Violation(f"state {kept['sequence']} needs {', '.join(sorted(needed))}, which it does not name")
    if {place for kept in manifest["kept"] for place in kept["parts"]} != {*range(len(manifest["parts"]))}:
        yield Violation("the manifest names parts of no state, or states name others")
    kept_sequences = {kept["sequence"] for kept in manifest["kept"]}
    releases = {kept["release"] for kept in manifest["kept"]} - {None}
    if manifest["release"]:
        releases.add(manifest["release"]["sequence"])
    for release in releases - kept_sequences:
        yield Violation(f"the state of release {release} is not kept")


def _parts(state: bytes) -> set[str]:
    """Return the digests of the parts that a state needs."""
    try:
        tensors = safetensors.numpy.load(state)
    except safetensors.SafetensorError:
        return set()  # it is missing or damaged
    return {"sha256:" + bytes(row).hex() for name, t in tensors.items() if name.endswith("/digests") for row in t}


def check_overwritten(log: Log) -> Iterator[Violation]:
    """Check that objects of older manifests, if still present, are unchanged."""
    named = {reference["key"]: reference for manifest in log.manifests for reference in named_objects(manifest)}
    newest = {reference["key"] for reference in named_objects(log.manifest)}
    for key in named.keys() & log.objects.keys() - newest:
        if not matches(log.objects[key], named[key]):
            yield Violation(f"{key} was overwritten")


def check_release(log: Log) -> Iterator[Violation]:
    """Check the weights topic.

    It holds the chunks of all releases once, in order, and nothing else. Compaction may have deleted those of earlier
    releases. The joined chunks of the last release are its objects. The manifest of each release is in the store.
    """
    releases = [manifest["release"] for manifest in log.manifests if manifest["release"]]
    # A release is in every manifest up to the next one.
    named = list(
        dict.fromkeys(chunk["offset"] for release in releases for one in inline(release) for chunk in one["chunks"])
    )
    found = [read.offset for read in log.weights]
    if found != [offset for offset in named if offset in {*found}]:
        yield Violation("the weights topic holds other chunks than the manifests name")
    yield from check_chunks(log.manifest, log.weights)
    for sequence in log.stored_otherwise:
        yield Violation(f"the stored manifest of release {sequence} is another one")


def check_earlier(log: Log) -> Iterator[Violation]:
    """Check that each manifest lists the newest of the releases before its last one, with the objects they had."""
    had: dict[int, dict[str, Any]] = {}
    for manifest in log.manifests:
        if manifest["released"]:
            release = manifest["release"]
            onnx = release["onnx"] and release["onnx"]["published"]["object"]
            objects = {name: release[name] for name in ("object", "evaluation", "manifest")}
            objects |= {"canary": release["canary"]["object"]} | ({"onnx": onnx} if onnx else {})
            figures = {name: {**release[name]} for name in ("validation", "test")}
            for figure in figures.values():
                del figure["per_class"]
            had[release["sequence"]] = objects | figures
        listed = [earlier["sequence"] for earlier in manifest["earlier"]]
        before = [*had][:-1]
        where = f"manifest {manifest['sequence']}"
        if listed != before[len(before) - len(listed) :]:
            yield Violation(f"{where} lists the earlier releases {listed}, but {before} were published")
            continue
        for earlier in manifest["earlier"]:
            figures = {name: earlier[name] for name in ("validation", "test")}
            if of_earlier(earlier) | figures != had[earlier["sequence"]]:
                yield Violation(f"{where} lists release {earlier['sequence']} otherwise than it was published")


def check_chunks(manifest: dict[str, Any], weights: Iterable[Read]) -> Iterator[Violation]:
    """Check that the joined chunks of the objects of a manifest's release are these objects."""
    read = list(weights)
    for published in inline(manifest["release"]):
        if digest(joined(published, read)) != published["object"]["digest"]:
            yield Violation(f"the chunks are not {published['object']['key']}")


def check_roll_backs(log: Log) -> Iterator[Violation]:
    """Check that training goes back only to the last release, and only when a candidate is refused.

    It discards, and reports as discarded, the records since that release that were not discarded before.
    """
    last = None
    read: dict[Place, list[int]] = {}
    for manifest in log.manifests:
        for place, (start, end) in places(manifest["spans"]).items():
            if place[0].endswith(".predictions"):
                continue  # they are not learned
            read[place] = [read[place][0] if place in read else start, end]
        where = f"manifest {manifest['sequence']}"
        last = manifest if manifest["released"] else last
        if manifest["release"] and (last is None or manifest["release"]["sequence"] != last["sequence"]):
            yield Violation(f"{where} names another release than the last")
        refused = manifest["decision"] is not None and not manifest["decision"]["released"]
        expected: dict[Place, list[int]] = {}
        if manifest["rolled_back_to"] is not None:
            if not refused:
                yield Violation(f"{where} went back and refused nothing")
            if last is None or manifest["rolled_back_to"] != last["sequence"]:
                yield Violation(f"{where} went back to another release than the last")
            expected = {place: [start, end] for place, (start, end) in read.items() if start < end}
        if places(manifest["discarded"]) != expected:
            yield Violation(f"{where} discards {manifest['discarded']}, not {expected}")
        if manifest["released"] or manifest["rolled_back_to"] is not None:
            read = {}


def check_dead_letters(log: Log, fed: Sequence[Fed]) -> Iterator[Violation]:
    """Check that every rejected record is in the dead letters once, unchanged, with headers that give the reason."""
    ends = _ends(log.manifest)
    rejected = {
        (r.topic, r.partition, r.offset, r.row): r.draft
        for r in fed
        if r.draft.fate not in (None, LOST, TOMBSTONE, *SPLITS) and _at(r) < ends.get((r.topic, r.partition), (0, 0))
    }
    letters: dict[Origin, Read] = {}
    for letter in log.dead_letters:
        errors = _errors(letter)
        try:
            row_of = int(errors["row"]) if "row" in errors else None
            origin = errors["topic"], int(errors["partition"]), int(errors["offset"]), row_of
        except (KeyError, ValueError):
            yield Violation(f"dead letter {letter.offset} does not say where it is from")
            continue
        if origin in letters:
            yield Violation(f"{origin} is in the dead letters twice", twice=1)
        elif origin not in rejected:
            yield Violation(f"{origin} is in the dead letters, but was not rejected")
        else:
            yield from _check_dead_letter(letter, rejected[origin], origin)
        letters[origin] = letter
    for origin in rejected.keys() - letters.keys():
        yield Violation(f"{origin} is not in the dead letters", lost=1)


def _errors(letter: Read) -> dict[str, str]:
    found = {n.removeprefix(ERRORS): v for n, v in letter.headers if n.startswith(ERRORS)}
    return {name: (value or b"").decode(errors="replace") for name, value in found.items()}


def _check_dead_letter(letter: Read, draft: Draft, origin: Origin) -> Iterator[Violation]:
    headers = [(name, value) for name, value in letter.headers if not name.startswith(ERRORS)]
    errors = _errors(letter)
    is_row = origin[-1] is not None
    names = ["topic", "partition", "offset", "stage", "exception.class.name", "exception.message"]
    names += ["row"] if is_row else []
    if [name for name, _ in letter.headers if name.startswith(ERRORS)] != [ERRORS + name for name in names]:
        yield Violation(f"{origin} has other error headers: {', '.join(errors)}")
        return
    if errors["exception.class.name"] != draft.fate:
        yield Violation(f"{origin} has another reason")
    if errors["stage"] != (
        "learn" if draft.fate in ("too_many_classes", "rare_label", "non_finite_step") else "decode"
    ):
        yield Violation(f"{origin} has another stage")
    if not errors["exception.message"]:
        yield Violation(f"{origin} has no message")
    if is_row:
        if (letter.key, headers) != (KEY, []):
            yield Violation(f"{origin} has another key, or headers")
        try:
            rows = rows_in(letter.value)
        except pa.ArrowInvalid:
            rows = []
        if str(rows) != str([row(draft)]):  # as text, because a weight may be NaN
            yield Violation(f"{origin} has another row")
        return
    if draft.fate == UNREADABLE:  # of it there is no more than its place
        expected = None, []
    elif len(draft.value or b"") > MAX_RECORD_BYTES:  # too large to be there whole
        expected = None, [("truncated", b"true"), ("digest", digest(draft.value).encode())]
    else:
        expected = draft.value, [(name, value) for name, value in draft.headers if not name.startswith(ERRORS)]
    if letter.key != (None if draft.fate == UNREADABLE else draft.key):
        yield Violation(f"{origin} has another key")
    if letter.value != expected[0]:
        yield Violation(f"{origin} has other bytes")
    if headers != expected[1]:
        yield Violation(f"{origin} has other headers")


def check_drained(log: Log, fed: Sequence[Fed]) -> Iterator[Violation]:
    """Check that the newest manifest has passed every fed record. `check` does not, as it takes a log at any time."""
    ends = _ends(log.manifest) if log.checkpoints else {}
    left = sum(_at(record) >= ends.get((record.topic, record.partition), (0, 0)) for record in fed)
    if left:
        yield Violation(f"{left} records were not read", lost=left)


def compare_states(log: Log, expected: Log) -> Iterator[Violation]:
    """Compare the ends of two runs of the same batches.

    Weights, optimizer, memory, RNG and release are equal byte for byte, and training went back at the same places.
    """
    if not (log.checkpoints and expected.checkpoints):
        yield Violation("there is no manifest to compare")
        return
    if log.manifest["state"]["digest"] != expected.manifest["state"]["digest"]:
        states = _tensors(log), _tensors(expected)
        names = {name for state in states for name in state}
        other = [n for n in sorted(names) if len({state[n].tobytes() if n in state else None for state in states}) > 1]
        yield Violation(f"the state is another: {', '.join(other) or 'its document'}")
    releases = [manifest["release"] for manifest in (log.manifest, expected.manifest)]
    if len({release and release["object"]["digest"] for release in releases}) > 1:
        yield Violation("the release is another")
    if len({json.dumps([manifest["discarded"] for manifest in roll_backs(run)]) for run in (log, expected)}) > 1:
        yield Violation("training went back elsewhere")


def _tensors(log: Log) -> dict[str, np.ndarray]:
    """Return the tensors of the newest state; none if it is missing or damaged, which `check_objects` reports."""
    reference = log.manifest["state"]
    data = log.objects.get(reference["key"], b"")
    return safetensors.numpy.load(data) if matches(data, reference) else {}


def check_positions(log: Log) -> Iterator[Violation]:
    """Check that the group offsets mirror the newest manifest's positions, without the predictions topic."""
    if log.group != {at: end for at, end in _ends(log.manifest).items() if not at[0].endswith(".predictions")}:
        yield Violation("the group offsets are not the manifest's positions")
