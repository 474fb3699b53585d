"""Foreign records in the run's own topics: they are skipped and counted, and never mistaken for a manifest."""

import json
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from feed import Headers, client, mixed
from harness import NewRun, Run
from outputs import Log, Read

from stream_learner import config
from stream_learner.checkpoints.store import Store
from stream_learner.config import Settings
from stream_learner.contract.manifest import decode_manifest, encode
from stream_learner.contract.spans import RowPositions, each, row_positions
from stream_learner.errors import ExitCode, StateError
from stream_learner.follow.status import read_status
from stream_learner.publishing.recover import Recovery
from stream_learner.streams import manifests, topics
from stream_learner.streams.cluster import Cluster
from stream_learner.streams.manifests import Newest, read_newest


def write(run: Run, topic: str, value: bytes | None, key: str = "", headers: Headers | None = None) -> None:
    """Write a record to a topic, by default with the run's key, as anybody with the right to write can."""
    producer = Producer(client(run.broker.bootstrap_servers))
    producer.produce(topic, value, key or run.id, headers=[*(headers or [])])
    producer.flush()


def encoded(manifest: dict[str, Any]) -> bytes:
    return json.dumps(manifest).encode()


class Copy:
    """Topics of a prefix of their own, with the manifests of a run as if it had written them there."""

    def __init__(self, run: Run, log: Log, prefix: str):
        self.run = run
        arguments = [a for a in run.arguments if not a.startswith("topics.")]
        self.settings: Settings = config.load(None, [*arguments, f"topics.prefix={prefix}"])
        topics.create(self.settings)
        self.checkpoints, self.history = f"{prefix}.checkpoints", f"{prefix}.history"
        self.id = topics.topic_ids(self.settings, [self.checkpoints])[self.checkpoints]
        self.manifests = log.manifests
        for manifest in self.manifests:
            del manifest["topic_ids"][f"{run.id}.checkpoints"]
            manifest["topic_ids"][self.checkpoints] = self.id

    def write(self, topic: str, *values: bytes | None) -> None:
        for value in values:
            write(self.run, topic, value)

    def newest(self, mirrored: RowPositions | None = None) -> Newest:
        return read_newest(self.settings, self.id, mirrored or {})

    def sequence(self, mirrored: RowPositions | None = None) -> int | None:
        newest = self.newest(mirrored)
        return newest.found and newest.found.manifest.sequence


@pytest.fixture
def copied(finished: tuple[Run, Log], unique_name: str) -> Copy:
    run, log = finished
    return Copy(run, log, unique_name)


def places_in(manifest: dict[str, Any]) -> RowPositions:
    found = decode_manifest(encoded(manifest))
    return row_positions(found.positions, found.rows)


def test_the_newest_manifest_is_found_among_foreign_records(copied: Copy) -> None:
    first, *_, before, last = values = [encoded(manifest) for manifest in copied.manifests]
    another = encoded({**copied.manifests[-1], "run_id": "another"})
    junk = [b"not JSON", b"", None, b"[" * 100_000, b'{"schema_version": 3, "run_id": "x"}', another]
    copied.write(copied.history, *values)
    copied.write(copied.checkpoints, before, last)
    assert copied.newest().foreign == []
    copied.write(copied.checkpoints, *junk, first, last)
    newest = copied.newest()
    assert newest.found
    assert newest.found.manifest.sequence == len(values)
    assert [len(foreign.offsets) for foreign in newest.foreign] == [len(junk) + 2]
    assert not newest.displaced
    assert not newest.behind
    assert read_status(copied.settings).manifest == newest.found.manifest


def test_a_manifest_that_was_displaced_by_compaction_is_found_in_the_history(copied: Copy) -> None:
    """Compaction leaves one record in the checkpoints topic: the last one with the run's key."""
    *_, before, last = values = [encoded(manifest) for manifest in copied.manifests]
    copied.write(copied.history, *values, b"not JSON", values[0])
    copied.write(copied.checkpoints, b"not JSON")
    newest = copied.newest()
    assert copied.sequence() == len(values)
    assert newest.displaced
    assert [len(foreign.offsets) for foreign in newest.foreign] == [1, 2]
    assert read_status(copied.settings).manifest == (newest.found and newest.found.manifest)
    copied.write(copied.checkpoints, before)  # an old one, replayed: only the mirrored positions are beyond it
    assert copied.sequence(places_in(copied.manifests[-1])) == len(values)
    assert last != before


def test_an_old_manifest_that_is_sent_again_and_displaces_the_newest_is_not_taken_for_it(
    copied: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else in the checkpoints topic looks wrong; who looks on does not know the positions."""
    values = [encoded(manifest) for manifest in copied.manifests]
    copied.write(copied.history, *values)
    copied.write(copied.checkpoints, values[0])
    assert copied.sequence() == len(values)
    assert copied.sequence(places_in(copied.manifests[-1])) == len(values)
    status = read_status(copied.settings).manifest
    assert status
    assert status.sequence == len(values)
    copied.write(copied.history, values[0])  # the history too, where nobody remembers the first one
    monkeypatch.setattr(manifests, "LOOK_TAIL", 2)
    assert copied.sequence() == len(values)


def test_an_old_manifest_of_the_same_positions_has_fewer_rows(copied: Copy) -> None:
    """Manifests inside one message have the same positions, and one that is sent again displaces the newest."""
    *_, before, last = copied.manifests
    before |= {"positions": last["positions"], "spans": {}, "lost": {}}
    topic = min(last["positions"])
    before["rows"], last["rows"] = {topic: {"0": 1}}, {topic: {"0": 2}}
    copied.write(copied.history, *map(encoded, copied.manifests))
    copied.write(copied.checkpoints, encoded(before))
    assert copied.sequence(places_in(last)) == last["sequence"]
    assert copied.sequence(places_in(before)) == before["sequence"]


def test_junk_in_the_history_of_a_run_that_has_not_begun_is_skipped(copied: Copy) -> None:
    copied.write(copied.history, b"not JSON")
    assert copied.newest() == Newest(None, [])


def test_where_only_older_manifests_are_left_nothing_is_resumed(copied: Copy) -> None:
    *values, _ = [encoded(manifest) for manifest in copied.manifests]
    copied.write(copied.history, *values)
    copied.write(copied.checkpoints, values[-1], b"not JSON")
    mirrored = places_in(copied.manifests[-1])
    newest = copied.newest(mirrored)
    assert newest.behind
    group = Consumer(
        client(copied.run.broker.bootstrap_servers)
        | {"group.id": copied.settings.transactional_id, "enable.auto.commit": False}
    )
    offsets = [TopicPartition(topic, p, offset) for topic, p, (offset, _) in each(mirrored)]
    group.commit(offsets=offsets, asynchronous=False)
    group.close()
    skipped: list[tuple[str, int]] = []
    recovery = Recovery(
        copied.settings,
        Store(copied.settings.checkpoint.store),
        Cluster(copied.settings),
        skipped=lambda *found: skipped.append(found),
    )
    with pytest.raises(StateError, match="has committed later positions: a manifest is missing or damaged"):
        recovery.take_over(lambda: None)
    assert skipped == [(copied.checkpoints, 1)]


def test_a_run_that_was_started_over_is_not_taken_for_the_one_before(copied: Copy) -> None:
    values = [encoded(manifest) for manifest in copied.manifests]
    again = [encoded(manifest | {"epoch": 2}) for manifest in copied.manifests[:2]]
    copied.write(copied.history, *values, *again, values[0])
    copied.write(copied.checkpoints, b"not JSON", *again)
    newest = copied.newest()
    assert newest.found
    assert newest.found.manifest.order == (2, 2)
    copied.write(copied.checkpoints, values[-1])  # the last one before, sent again
    newest = copied.newest()
    assert newest.found
    assert newest.found.manifest.order == (2, 2)
    assert newest.last_epoch == 2
    status = read_status(copied.settings).manifest
    assert status
    assert status.order == (2, 2)


def test_epochs_beyond_the_bound_are_no_manifests_and_the_last_one_ends_a_fresh_start(new_run: NewRun) -> None:
    run = new_run()
    run.feed(mixed(300))
    manifest = run.finish(run.start()).manifest
    for epoch in 2**63, 2**31, 0:
        write(run, f"{run.id}.history", encoded(manifest | {"epoch": epoch}))
        write(run, f"{run.id}.checkpoints", encoded(manifest | {"epoch": epoch}))
    worker = run.start()
    worker.learning()
    assert '"epoch":1' in worker.text()
    worker.stop()
    run.delete_topic(f"{run.id}.checkpoints")
    topics.create(run.settings)
    write(run, f"{run.id}.history", encoded(manifest | {"epoch": 2**31 - 1}))
    text = run.start("--fresh").ends(ExitCode.STATE)
    assert "has epoch 2147483647, the highest possible one, so another program must have written it" in text


def test_a_manifest_of_a_newer_version_is_no_junk(copied: Copy) -> None:
    copied.write(copied.checkpoints, encoded(copied.manifests[-1]), b'{"schema_version": 99, "run_id": "x"}')
    assert copied.sequence() == len(copied.manifests)
    copied.write(copied.checkpoints, encoded({"schema_version": 99, "run_id": copied.run.id}))
    with pytest.raises(StateError, match="was written by a newer version of this program"):
        copied.newest()


def test_only_foreign_records_are_no_fresh_start(new_run: NewRun) -> None:
    run = new_run()
    write(run, f"{run.id}.checkpoints", b"not JSON\x1b[2J")
    text = run.start().ends(ExitCode.STATE)
    assert f"{run.id}.checkpoints holds no manifest of run" in text
    assert "\x1b" not in text
    run.feed(mixed(300))
    worker = run.start("--fresh")
    worker.reaches("checkpoint_sequence", 1)
    run.finish(worker)


def keys(folder: Path, name: str) -> tuple[Ed25519PrivateKey, str, str]:
    """A key pair, and the files of its halves."""
    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return key, str(private), str(public)


def signed_by(key: Ed25519PrivateKey, read: Read) -> bool:
    try:
        key.public_key().verify(dict(read.headers).get("signature", b""), read.value or b"")
    except InvalidSignature:
        return False
    return True


def test_a_signed_run_goes_on_beside_forgeries(new_run: NewRun, tmp_path: Path) -> None:
    """From unsigned to signed, then to another key. Records that others write meanwhile are skipped."""
    old, old_file, old_public = keys(tmp_path, "old")
    new, new_file, new_public = keys(tmp_path, "new")
    run = new_run()
    checkpoints = f"{run.id}.checkpoints"

    def life(**security: Any) -> Log:
        run.overrides = {f"security.{name}": value for name, value in security.items()}
        run.feed(mixed(300))
        return run.finish(run.start())

    life()
    run.overrides["security.verify_key_files"] = [old_public]
    assert "security.signing_key_file is not" in run.start().ends(ExitCode.USAGE)
    run.overrides["security.signing_key_file"] = old_file
    assert "it is not signed by one of security.verify_key_files" in run.start().ends(ExitCode.STATE)
    unsigned = life(signing_key_file=old_file)
    genuine = unsigned.checkpoints[-1]
    for topic in ("checkpoints", "history", "metrics"):
        assert signed_by(old, run.read(topic)[-1])

    forged = json.loads(genuine.value or b"")
    forged["program"] = "forged"
    wrong = [("signature", new.sign(encoded(forged)))]
    write(run, checkpoints, encoded(forged))
    write(run, checkpoints, encoded(forged), headers=wrong)
    write(run, checkpoints, encoded(forged), headers=genuine.headers)
    write(run, checkpoints, genuine.value, headers=genuine.headers)
    run.overrides = {"security.verify_key_files": [old_public]}  # readers need no more
    manifest = read_status(run.settings).manifest
    assert manifest
    assert encode(manifest) == genuine.value

    log = life(signing_key_file=new_file, verify_key_files=[old_public, new_public])
    assert signed_by(new, log.history[-1])
    worker = run.start()
    worker.learning()
    assert sum(worker.metric("foreign_records_total").values()) >= 4
    assert "records that are not manifests of the run were skipped" in worker.text()
    worker.stop()

    sequences = [m["sequence"] for m in log.manifests]
    # The checkpoints topic as compaction leaves it after an old manifest was sent again.
    first_signed = next(read for read in unsigned.checkpoints if signed_by(old, read))
    run.empty("checkpoints")
    write(run, checkpoints, first_signed.value, headers=first_signed.headers)
    assert not (run.store / json.loads(first_signed.value or b"")["state"]["key"]).exists()
    worker = run.start()
    worker.learning()
    assert sum(worker.metric("checkpoint_sequence").values()) == sequences[-1]
    worker.stop()

    assert "as published" in run.call("rebuild", "--from", str(sequences[-2]), "--to", str(sequences[-1])).ends(0)
    copy = tmp_path / "manifest.json"
    copy.write_bytes(encoded(forged))
    said = run.call("rebuild", "--from", "0", "--to", str(copy)).ends(ExitCode.STATE)
    assert "is not one of the signed manifests" in said
    run.overrides = {"security.verify_key_files": [new_public]}
    said = run.call("rebuild", "--from", "0", "--to", str(sequences[-1])).ends(ExitCode.USAGE)
    assert "the history topic has no manifests before" in said
