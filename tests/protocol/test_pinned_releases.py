"""Releases that a person pins or withdraws, on the real broker, while a worker learns and followers follow."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checker import violations
from command_line import stream_learner
from confluent_kafka import OFFSET_END, Producer, TopicPartition
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from feed import client, mixed
from harness import DEADLINE_S, POLL_S, NewRun, Run, Worker

from stream_learner import Follower, NoReleaseError, UsageError, read_release
from stream_learner.errors import ExitCode, KafkaUnavailableError
from stream_learner.follow.choosing import choose
from stream_learner.follow.past import read_releases
from stream_learner.streams import pins, topics
from stream_learner.streams.acks import read_acks

EVERY = {"release__every_records": 200, "release__min_held_out": 1000, "checkpoint__every_s": 0.5}
"""Each candidate is released."""


@pytest.fixture
def follow() -> Iterator[Any]:
    """Return a function that follows a run until the end of the test."""
    opened: list[Follower] = []

    def follow(run: Run, **options: Any) -> Follower:
        opened.append(Follower(run.id, run.broker.bootstrap_servers, **options))
        return opened[-1]

    yield follow
    for follower in opened:
        follower.close()


def until(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not in {DEADLINE_S:g} s: {what}"
        time.sleep(POLL_S)


def uses(follower: Follower, sequence: int) -> None:
    """Wait until a follower uses a release."""

    def used() -> bool:
        release = follower.following.release
        return release is not None and release.described.sequence == sequence

    until(f"use of {sequence}: {follower.following}", used)


def listed(run: Run) -> list[int]:
    """Sequences of the releases in the newest manifest."""
    manifest = json.loads(run.read("checkpoints")[-1].value or b"")
    return [earlier["sequence"] for earlier in manifest["earlier"]] + [manifest["release"]["sequence"]]


def releases(run: Run, worker: Worker, seed: int) -> list[int]:
    """Learn records until there are further releases. Return the sequences of those that are kept."""
    run.feed(mixed(450, seed))
    run.learned(worker)
    until("a save", lambda: run.saved() == run.ends())
    return listed(run)


def acknowledged(run: Run) -> list[tuple[str, int]]:
    return [(ack.name, ack.sequence) for ack in read_acks(run.settings)]


def produce(run: Run, topic: str, key: bytes, value: bytes) -> None:
    producer = Producer(client(run.broker.bootstrap_servers))
    producer.produce(f"{run.prefix}.{topic}", value, key)
    producer.flush()


def forget_history(run: Run) -> None:
    """Delete all records of the history topic, as retention does."""
    place = TopicPartition(f"{run.prefix}.history", 0, OFFSET_END)
    run.admin.delete_records([place])[place].result(DEADLINE_S)
    assert not run.read("history")


def manifest_key(run: Run, sequence: int) -> str:
    """Return the key of the stored manifest of an earlier release."""
    manifest = json.loads(run.read("checkpoints")[-1].value or b"")
    (key,) = [one["manifest"]["key"] for one in manifest["earlier"] if one["sequence"] == sequence]
    return key


def test_a_release_is_pinned_and_withdrawn_while_the_run_goes_on(new_run: NewRun, follow: Any) -> None:
    run = new_run(release__keep=3, **EVERY)
    store = str(run.store)
    follower: Follower = follow(run)  # has no store
    worker = run.start()
    first, *_, last = releases(run, worker, 0)
    uses(follower, last)

    # The command pins; a second one changes nothing.
    assert f"followers use release {first} of epoch 1" in run.call(f"release pin {first}").ends(ExitCode.OK)
    uses(follower, first)
    assert follower.following.pinned
    assert "nothing was changed" in run.call(f"release pin {first}").ends(ExitCode.OK)
    assert len(run.read("pins")) == 1
    refused = run.call("release pin 99999").ends(ExitCode.USAGE)
    assert f"release 99999 is not kept; choose one of {first}, " in refused

    # Training continues beyond `release.keep`, also by another worker. The pinned release stays.
    releases(run, worker, 1)
    worker.kill()
    worker = run.start()
    kept = releases(run, worker, 2)
    assert kept[0] == first
    assert len(kept) == 4
    assert follower.latest().described.sequence == first
    later: Follower = follow(run, store=store, acknowledge_as="later")
    assert later.latest(DEADLINE_S).described.sequence == first
    assert read_release(run.id, run.broker.bootstrap_servers, store=store).described.sequence == first

    # A pin that is withdrawn. Other records change nothing.
    pinned = run.read("pins")[0]
    choose(run.settings, "withdraw", first)
    uses(follower, kept[-1])
    uses(later, kept[-1])
    until("an acknowledgement", lambda: acknowledged(run) == [("later", kept[-1])])
    before = len(run.read("acks"))
    assert [release.described.sequence for release in follower.kept] == [last, kept[-1]]
    for _ in range(2 * pins.MAX_WARNINGS):
        produce(run, "pins", b"key", b"no pin")
    found = stream_learner("releases", "--json", *run._sets, folder=run.folder)
    assert len(json.loads(found.out)) == len(kept)
    assert found.err.count("a record of the pins topic is ignored") == pins.MAX_WARNINGS
    produce(run, "pins", pinned.key or b"", pinned.value or b"")
    with pytest.raises(UsageError, match=f"release {first} was withdrawn.*choose one of {kept[1]}, "):
        choose(run.settings, "pin", first)

    # The release in use is withdrawn: the newest other one is used, also by a follower that starts later.
    choose(run.settings, "pin", kept[1])
    uses(follower, kept[1])
    until("an acknowledgement", lambda: acknowledged(run) == [("later", kept[1])])
    assert len(run.read("acks")) == before + 1
    assert "later" in run.call("status").ends(ExitCode.OK)
    later.close()
    assert acknowledged(run) == []
    assert choose(run.settings, "unpin").changed
    assert not choose(run.settings, "unpin").changed
    # A record with the last time that there is does not prevent later records.
    last_one = json.loads(pinned.value or b"") | {"created_at": "9999-12-31T23:59:59.999999Z"}
    last_one["release"] = json.loads(run.read("pins")[-2].value or b"")["release"]
    produce(run, "pins", pinned.key or b"", json.dumps(last_one).encode())
    until("the pin", lambda: follower.following.pinned)
    assert choose(run.settings, "unpin").changed
    uses(follower, kept[-1])
    withdrawn = f"followers use release {kept[-2]} of epoch 1"
    assert withdrawn in run.call(f"release withdraw {kept[-1]}").ends(ExitCode.OK)
    uses(follower, kept[-2])
    assert follow(run, store=store).latest(DEADLINE_S).described.sequence == kept[-2]
    for sequence in kept[1:-1]:
        choose(run.settings, "withdraw", sequence)
    until("no release", lambda: follower.following.release is None)
    with pytest.raises(NoReleaseError, match="were withdrawn"):
        follower.latest()
    with pytest.raises(NoReleaseError, match="were withdrawn"):
        read_release(run.id, run.broker.bootstrap_servers)

    # The next release is used. It drops the pinned one, which was withdrawn.
    kept = releases(run, worker, 3)
    uses(follower, kept[-1])
    assert first not in kept
    assert len(kept) == 3
    worker.stop()
    # The checker expects that only the newest releases are kept.
    assert not [
        found for found in violations(run.published(), run.fed) if "lists the earlier releases" not in found.what
    ]


def test_a_run_that_is_started_over_inherits_no_pin(new_run: NewRun, follow: Any) -> None:
    run = new_run(**EVERY)
    worker = run.start()
    first, *_ = releases(run, worker, 0)
    worker.stop()
    choose(run.settings, "pin", first)
    choose(run.settings, "withdraw", listed(run)[-1])
    follower: Follower = follow(run, store=str(run.store))
    uses(follower, first)
    run.delete_topic(f"{run.prefix}.checkpoints")
    topics.create(run.settings)
    worker = run.start("--fresh")
    run.learned(worker)
    worker.stop()
    until("epoch 2", lambda: follower.latest().manifest.epoch == 2)
    assert not follower.following.pinned
    uses(follower, listed(run)[-1])


def test_without_the_topic_there_are_no_pins(new_run: NewRun, follow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pins, "LOOK_S", 0.1)
    run = new_run(release__keep=1, **EVERY)
    run.delete_topic(f"{run.prefix}.pins")
    follower: Follower = follow(run)
    worker = run.start()
    releases(run, worker, 0)
    run.feed(mixed(450, 1))
    run.finish(worker)
    *_, last = listed(run)
    uses(follower, last)
    assert read_release(run.id, run.broker.bootstrap_servers).described.sequence == last
    assert f"topic {run.prefix}.pins is missing" in run.call(f"release pin {last}").ends(ExitCode.TOPICS)
    topics.create(run.settings)
    choose(run.settings, "pin", last)
    until("the pin", lambda: follower.following.pinned)
    # An open transaction of another producer hides later records. The command does not say that followers obey.
    stranger = Producer(client(run.broker.bootstrap_servers) | {"transactional.id": f"{run.id}.stranger"})
    stranger.init_transactions()
    stranger.begin_transaction()
    stranger.produce(f"{run.prefix}.pins", b"no pin", b"key")
    stranger.flush()
    run.overrides["recovery.timeout_s"] = 1.0
    with pytest.raises(KafkaUnavailableError, match=f"was written, .*an open transaction .*{run.id}.stranger"):
        choose(run.settings, "unpin")
    assert follow(run).latest(DEADLINE_S).described.sequence == last
    assert follower.following.pinned
    stranger.abort_transaction()
    until("the unpin", lambda: not follower.following.pinned)


def test_acknowledgements_never_disturb_a_follower(new_run: NewRun, follow: Any) -> None:
    run = new_run(**EVERY)
    run.delete_topic(f"{run.prefix}.acks")
    with pytest.raises(UsageError, match="the name of a follower must be"):
        follow(run, acknowledge_as="two words")
    follower: Follower = follow(run, acknowledge_as="one")
    worker = run.start()
    *_, last = releases(run, worker, 0)
    worker.stop()
    uses(follower, last)
    follower.close()
    assert read_acks(run.settings) == []
    topics.create(run.settings)
    follower = follow(run, acknowledge_as="two")
    until("an acknowledgement", lambda: acknowledged(run) == [("two", last)])
    written = run.read("acks")[0]
    produce(run, "acks", b"key", b"no acknowledgement")
    produce(run, "acks", b"another", written.value or b"")
    produce(run, "acks", b"other", (written.value or b"").replace(b'"two"', b'"other"').replace(run.id.encode(), b"x"))
    assert acknowledged(run) == [("two", last)]


def test_only_signed_records_are_obeyed(new_run: NewRun, follow: Any, tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    run = new_run(security__signing_key_file=str(private), security__verify_key_files=[str(public)], **EVERY)
    worker = run.start()
    first, *_, last = releases(run, worker, 0)
    worker.stop()
    signed = run.settings
    del run.overrides["security.verify_key_files"], run.overrides["security.signing_key_file"]
    choose(run.settings, "pin", first)
    follower: Follower = follow(run, verify_key_files=[public])
    uses(follower, last)
    uses(follow(run), first)  # it has no key
    run.overrides["security.verify_key_files"] = [str(public)]
    with pytest.raises(UsageError, match="followers would ignore"):
        choose(run.settings, "pin", first)
    choose(signed, "pin", first)
    uses(follower, first)

    # The history topic no longer holds the manifest of the pinned release. The store does.
    forget_history(run)
    latecomer: Follower = follow(run, verify_key_files=[public])  # has no store, so it falls back to another release
    uses(latecomer, last)
    assert "pass the worker's checkpoint.store" in (latecomer.following.refused or "")
    uses(follow(run, verify_key_files=[public], store=str(run.store)), first)
    released = read_release(run.id, run.broker.bootstrap_servers, verify_key_files=[public], store=str(run.store))
    assert released.described.sequence == first
    assert released.is_of_its_manifest
    (pinned,) = [release for release in read_releases(signed) if release.pinned]
    assert (pinned.sequence, pinned.used, pinned.decision) == (first, True, None)
    stored = run.store / manifest_key(run, first)
    stored.write_bytes(stored.read_bytes().replace(b'"float32"', b'"float16"'))
    uses(follow(run, verify_key_files=[public], store=str(run.store)), last)
