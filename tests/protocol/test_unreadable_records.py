"""A worker meets bytes that are no records: it accounts for each offset, and learns everything around them."""

import re
from pathlib import Path

import raw_batches
import zstandard
from feed import UNREADABLE, Draft, Fed, good
from harness import NewRun, Run
from raw_batches import batch, payload, sized, varint

from stream_learner.config import MIB
from stream_learner.errors import ExitCode

BOMB_BYTES = 512 * MIB


def test_a_damaged_batch_is_lost_once_that_is_allowed(new_run: NewRun) -> None:
    run = new_run()
    run.feed(good(300))
    run.feed([Draft(b"to be damaged", b"", [], None)])
    run.feed(good(300))
    segment = run.broker.folder / "data" / f"{run.input}-0" / f"{0:020}.log"
    data = segment.read_bytes()
    with segment.open("r+b") as file:
        file.seek(data.index(b"to be damaged"))
        file.write(b"To")
    said = run.start().ends(ExitCode.INPUT)
    assert f"the batch of {run.input}[0] that holds offset 300 is damaged" in said
    assert run.saved() == {(run.input, 0): 300}
    run.overrides["input.on_lost"] = "continue"
    run.lost(0, 300, 301)
    log = run.finish(run.start())
    assert [window["lost"] for window in log.windows if window["lost"]] == [{run.input: {"0": [[300, 301]]}}]
    assert "as published" in run.call("rebuild", "--from", "0", "--to", str(log.manifest["sequence"])).ends(0)


def zeros_record() -> bytes:
    """A compressed record of 512 MiB; 16 kB."""
    before = b"\0" + varint(0) + varint(0) + sized(None) + varint(BOMB_BYTES)
    compressor = zstandard.ZstdCompressor().compressobj()
    parts = [compressor.compress(varint(len(before) + BOMB_BYTES + 1) + before)]
    parts += [compressor.compress(bytes(MIB)) for _ in range(BOMB_BYTES // MIB)]
    return b"".join([*parts, compressor.compress(varint(0)), compressor.flush()])


def peak_bytes(pid: int) -> int:
    """The most memory that a process has had."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


def send_raw(run: Run, raw_batch: bytes) -> None:
    offset = raw_batches.send(run.broker.settings, run.input, raw_batch)
    run.fed.append(Fed(run.input, 0, offset, Draft(None, b"", [], UNREADABLE)))


def test_a_bomb_costs_little_memory_and_its_own_offset(new_run: NewRun) -> None:
    run = new_run()
    run.feed(good(300))
    worker = run.start()
    run.learned(worker)
    before = peak_bytes(worker.pid)
    send_raw(run, batch(zeros_record(), 1, "zstd"))
    # Offsets that skip ahead: Apache's brokers let them through, and who believes them loses everything up to there.
    send_raw(run, batch(payload([raw_batches.Raw(b"x", offset_delta=10**6)]), 1, last_offset_delta=0))
    run.feed(good(300))
    run.learned(worker)
    grown = peak_bytes(worker.pid) - before
    log = run.finish(worker)
    assert grown < 256 * MIB
    whys = [value.decode() for letter in log.dead_letters for name, value in letter.headers if "message" in name]
    assert whys[0] == f"its batch decompresses to more than {64 * MIB} bytes"
    assert "does not come next" in whys[1]
