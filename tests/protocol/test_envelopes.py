"""Messages with many records each: a worker that is killed inside a message loses no row and learns none twice."""

import signal
from typing import Any

import pytest
from child import Point
from feed import Draft, digits
from harness import NewRun, Run
from outputs import Log

from stream_learner.contract.dead_letter import DeadLetter
from stream_learner.formats import Fields
from stream_learner.formats.arrow import Arrow, encode
from stream_learner.formats.images import decode
from stream_learner.formats.record import Record

BATCH = 8
ROWS = 50
MESSAGES = 24
SETTINGS: dict[str, Any] = {
    "input__format": "arrow",
    "input__max_record_bytes": 1024 * 1024,
    "model__name": "mlp",
    # Only full batches close, wherever a run begins.
    "batch__size": BATCH,
    "batch__linger_s": 3600.0,
    "memory__max_items": 200,
    "held_out__max_items": 100,
    "release__every_records": 333,
    # Every state is kept, and the manifest has room for the parts of all of them.
    "checkpoint__keep": 100,
    "memory__max_bytes": 40_000,
    "held_out__max_bytes": 16_000,
    "memory__segment_bytes": 16 * 1024,
    "rejects__max_share": 0.5,
}
# Rows of the second message that cannot be used.
BAD = {3: Fields(b"no image", "1"), 7: Fields(digits()[0][0], ""), 30: Fields(None, "3")}


def rows_of(message: int) -> list[Fields]:
    """Return the rows of a message. One in ten is a test sample. Odd messages have pixels, even ones PNGs."""
    numbers = range(ROWS * message, ROWS * (message + 1))
    pictures = [digits()[number % len(digits())] for number in numbers]
    splits = ["test" if number % 10 == 9 else "train" for number in numbers]
    rows = [Fields(image, label.decode(), None, split) for (image, label), split in zip(pictures, splits, strict=True)]
    if message % 2:
        return [row._replace(image=decode(bytes(row.image or b""), 8, 8, 1, 64)) for row in rows]
    if message == 2:
        return [BAD.get(number, row) for number, row in enumerate(rows)]
    return rows


def drafts() -> list[Draft]:
    """Return the messages. After the first, one is no Arrow stream. The last ends with the last sample of a batch."""
    messages = [rows_of(message) for message in range(MESSAGES)]
    training = sum(row.split == "train" for rows in messages for row in rows)
    while training % BATCH or messages[-1][-1].split != "train":
        training -= messages[-1].pop().split == "train"
    values = [encode(rows) for rows in messages]
    values.insert(1, b"not Arrow")
    return [Draft(b"key", value, [("origin", b"x")], None) for value in values]


@pytest.fixture(scope="module")
def fed_drafts() -> list[Draft]:
    return drafts()


def finished(run: Run, *points: Point) -> Log:
    """Return the output of a run whose worker is killed at each of the points, and then learns everything."""
    for point in points:
        run.start_signalled(point).ends(-signal.SIGKILL)
    worker = run.start()
    run.learned(worker)
    worker.stop()
    return run.published()


def test_a_run_that_is_killed_inside_messages_equals_an_undisturbed_one(new_run: NewRun, fed_drafts: list[Draft]):
    undisturbed = new_run(**SETTINGS, checkpoint__every_records=400)
    undisturbed.feed(fed_drafts)
    killed = new_run(**SETTINGS, input__topics=[undisturbed.input], checkpoint__every_records=130)
    killed.fed = undisturbed.fed
    expected = finished(undisturbed)
    log = finished(killed, Point("transaction", "commit", 2))

    inside = [manifest for manifest in log.manifests if manifest["rows"]]
    assert len(inside) > 2
    assert all(0 < manifest["rows"][undisturbed.input]["0"] < ROWS for manifest in inside)
    assert log.manifest["rows"] == {}
    assert log.manifest["state"]["digest"] == expected.manifest["state"]["digest"]
    assert log.manifest["release"]["object"]["digest"] == expected.manifest["release"]["object"]["digest"]
    total = sum(len(Arrow().read(as_record(draft)).fields) for draft in fed_drafts if draft.value != b"not Arrow")
    for run in (log, expected):
        assert sum(window["records"] for window in run.windows) == total + 1
        assert sum(window["learned"] for window in run.windows) % BATCH == 0
        check_dead_letters(run)

    first = inside[1]["sequence"]
    said = killed.call("rebuild", "--from", str(first), "--to", str(log.manifest["sequence"])).ends(0)
    assert f"state {log.manifest['state']['digest']}, as published" in said


def as_record(draft: Draft) -> Record:
    return Record("images", 0, 0, 0, draft.key, draft.value, draft.headers)


def check_dead_letters(log: Log) -> None:
    """Each bad row is a message with only this row. The message that is no Arrow stream is there unchanged."""
    letters = [DeadLetter.parse(read.key, read.value, read.headers) for read in log.dead_letters]
    assert [(letter.offset, letter.row, letter.reason) for letter in letters] == [
        (1, None, "bad_envelope"),
        (3, 3, "undecodable_image"),
        (3, 7, "no_label"),
        (3, 30, "no_image"),
    ]
    whole, *rows = letters
    assert (whole.key, whole.value, whole.headers) == (b"key", b"not Arrow", [("origin", b"x")])
    for letter in rows:
        assert (letter.key, letter.headers) == (b"key", [])
        (row,) = Arrow().read(Record("images", 0, 0, 0, None, letter.value, [])).fields
        assert letter.row is not None
        assert row == BAD[letter.row]
