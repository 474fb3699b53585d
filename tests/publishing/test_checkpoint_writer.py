"""The effects of a checkpoint in their order, and what an error at each of them leaves behind."""

import dataclasses

import numpy as np
import pytest
from fake_run import FakeRun, of_a_run, rejection
from fakes import TOPIC
from msgspec.structs import replace

from stream_learner.contract.manifest import Manifest, decode_manifest, digest
from stream_learner.contract.pins import Chosen
from stream_learner.contract.vocabulary import Reason
from stream_learner.errors import (
    FencedError,
    InputError,
    KafkaUnavailableError,
    PublishError,
    StateError,
    StoreError,
    TopicsError,
)
from stream_learner.publishing.shares import Share, replica_digest
from stream_learner.publishing.snapshot import ShardState

SAVE = ["put state.safetensors", "begin", "send metrics", "confirm", "confirm", "send checkpoints", "send history"]
PUBLISHED = ["confirm", "offsets", "commit", "read back"]
OF_A_RELEASE = ["put release.safetensors", "put evaluation.safetensors", "put canary.safetensors", "put manifest.json"]
OBJECTS = ["put part", "put state.safetensors", *OF_A_RELEASE]
TRANSACTION = ["begin", "send metrics", "send dead-letters", "send weights", "confirm", "send checkpoints", "offsets"]


@pytest.fixture
def run() -> FakeRun:
    return FakeRun()


def test_a_save_and_a_release_in_order(run: FakeRun) -> None:
    writer = run.writer()
    run.effects.take()
    run.publish(writer, run.snapshot())
    assert run.effects.take() == [*SAVE, *PUBLISHED, "put run.json"]
    run.publish(writer, run.snapshot(released=True, letters=[rejection(11)], parts=[b"part"]))
    assert run.effects.take() == [
        *OBJECTS,
        "begin",
        "send metrics",
        "send dead-letters",
        "send weights",
        "send weights",
        "confirm",
        "confirm",
        "send checkpoints",
        "send history",
        *PUBLISHED,
    ]
    run.publish(writer, run.snapshot(released=False, parts=[b"part"]))  # refused; the part is there already
    assert run.effects.take() == [*SAVE, *PUBLISHED]


class Peer:
    """Another rank, whose parameters have a digest."""

    def __init__(self, replica: str):
        self._replica = replica

    def shares(self, sequence: int) -> list[Share]:
        del sequence
        return [Share([], [], self._replica)]


def test_ranks_with_different_parameters_publish_nothing(run: FakeRun) -> None:
    snapshot = dataclasses.replace(run.snapshot(), shards=[ShardState({}, {})])
    other = dataclasses.replace(snapshot, tensors={"x": np.full(1, 0.5, np.float32)})
    with pytest.raises(StateError, match="different parameters"):
        run.writer(peers=Peer(replica_digest(other))).prepare(snapshot, {})
    assert run.cluster.manifests() == []
    published = run.publish(run.writer(peers=Peer(replica_digest(snapshot))), snapshot)
    assert run.cluster.manifests() == [published]


def test_a_chain_of_manifests(run: FakeRun) -> None:
    writer = run.writer()
    published = [run.publish(writer, run.snapshot(released=released)) for released in (None, True, False, None)]
    values = [written.value or b"" for written in run.cluster.written["digits.checkpoints"]]
    assert published == run.cluster.manifests()
    assert values == [written.value for written in run.cluster.written["digits.history"]]
    assert [manifest.sequence for manifest in published] == [1, 2, 3, 4]
    assert [manifest.predecessor for manifest in published] == [None, *map(digest, values[:-1])]
    assert [manifest.positions[TOPIC][0] for manifest in published] == [10, 20, 30, 40]
    assert [manifest.spans[TOPIC][0] for manifest in published] == [(0, 10), (10, 20), (20, 30), (30, 40)]
    assert [manifest.released for manifest in published] == [False, True, False, False]
    assert [manifest.release and manifest.release.sequence for manifest in published] == [None, 2, 2, 2]
    assert run.cluster.positions == {TOPIC: {0: (40, 0)}}
    for topic in ("checkpoints", "metrics"):
        assert {written.key for written in run.cluster.written[f"digits.{topic}"]} == {b"digits"}


def test_the_weights_in_their_topic_are_those_of_the_release(run: FakeRun) -> None:
    manifest = run.publish(run.writer(), run.snapshot(released=True))
    assert manifest.release
    (chunk,) = manifest.release.chunks
    written = run.cluster.written[chunk.topic][chunk.offset]
    assert written.key == b"release.safetensors/0"
    assert written.value == run.store.fetch(manifest.release.object)


def test_the_manifest_of_a_release_is_in_the_store_too(run: FakeRun) -> None:
    manifest = run.publish(run.writer(), run.snapshot(released=True))
    release = manifest.release
    assert release
    assert release.manifest
    stored = decode_manifest(run.store.fetch(release.manifest))
    canary = replace(release.canary, chunks=[])
    assert stored == replace(manifest, release=replace(release, chunks=[], canary=canary, manifest=None))


def test_a_large_release_is_in_the_store_alone() -> None:
    run = FakeRun(release__inline_max_bytes=0)
    manifest = run.publish(run.writer(), run.snapshot(released=True))
    assert manifest.release
    assert manifest.release.chunks == []
    assert run.store.fetch(manifest.release.object)


def test_poisonous_records_are_named_in_the_manifest(run: FakeRun) -> None:
    letters = [rejection(3), rejection(5, Reason.POISON), rejection(7, Reason.POISON)]
    manifest = run.publish(run.writer(), run.snapshot(letters=letters))
    assert manifest.poisoned == {TOPIC: {0: [5, 7]}}
    assert len(run.cluster.written["digits.dead-letters"]) == 3


def test_a_dead_letter_larger_than_its_topic_takes_is_sent_without_its_value(run: FakeRun) -> None:
    run.cluster.letter_bytes = 100_000
    run.publish(run.writer(), run.snapshot(letters=[rejection(0, value=bytes(50_000)), rejection(1)]))
    large, small = run.cluster.written["digits.dead-letters"]
    assert (large.value, small.value) == (None, b"bytes")


@pytest.mark.parametrize("effect", OBJECTS)
def test_an_object_that_cannot_be_written_leaves_none_of_its_folder(run: FakeRun, effect: str) -> None:
    writer = run.writer()
    first = run.publish(writer, run.snapshot())
    before = run.store.objects
    snapshot = run.snapshot(released=True, parts=[b"part"])
    run.effects.fail(effect, StoreError("no room"))
    run.effects.take()
    with pytest.raises(StoreError, match="no room"):
        writer.prepare(snapshot, {})
    # A part stays: it belongs to no attempt, and the next try names it.
    assert all("/memory/" in key for key in run.store.objects - before)
    assert "begin" not in run.effects.take()
    assert run.cluster.manifests() == [first]
    second = run.publish(writer, snapshot)
    assert second.sequence == 2
    assert run.store.objects == run.keys_of(second) | {"digits/run.json"}
    assert run.effects.take().count("put part") == (effect == "put part")


def test_a_folder_that_cannot_be_deleted_either_does_not_hide_the_first_error(run: FakeRun) -> None:
    writer = run.writer()
    run.effects.fail("put release.safetensors", StoreError("no room"))
    run.effects.fail("delete state.safetensors", StoreError("no right"))
    with pytest.raises(StoreError, match="no room"):
        writer.prepare(run.snapshot(released=True), {})


def test_each_try_writes_a_folder_of_its_own(run: FakeRun) -> None:
    writer = run.writer()
    snapshot = run.snapshot()
    first, second = (writer.prepare(snapshot, {}) for _ in range(2))
    assert first.state.key != second.state.key
    assert first.state.digest == second.state.digest
    assert (first.sequence, second.sequence) == (1, 1)


@pytest.mark.parametrize("effect", TRANSACTION)
def test_a_transaction_that_fails_before_its_commit_publishes_nothing(run: FakeRun, effect: str) -> None:
    writer = run.writer()
    run.publish(writer, run.snapshot())
    before = {topic: list(written) for topic, written in run.cluster.written.items()}
    snapshot = run.snapshot(released=True, letters=[rejection(11)])
    run.effects.fail(effect, PublishError("a record timed out"))
    prepared = writer.prepare(snapshot, {})
    with pytest.raises(PublishError, match="timed out"):
        writer.commit(prepared)
    assert {topic: written for topic, written in run.cluster.written.items() if written} == before
    assert run.cluster.positions == {TOPIC: {0: (10, 0)}}
    # A restart continues from the first checkpoint. Its next one has the sequence of the one that failed.
    recovered = run.recover()
    assert recovered.positions == {TOPIC: {0: 10}}
    again = run.publish(run.writer(recovered), snapshot)
    assert (again.sequence, again.predecessor) == (2, digest(before["digits.checkpoints"][0].value or b""))


@pytest.mark.parametrize("call", [1, 2, 3])
def test_every_record_is_confirmed_before_the_next_step(run: FakeRun, call: int) -> None:
    """Windows and dead letters, then chunks, whose offsets the manifest names, then the manifest."""
    writer = run.writer()
    prepared = writer.prepare(run.snapshot(released=True, letters=[rejection(1)]), {})
    run.effects.fail("confirm", PublishError("refused"), call)
    run.effects.take()
    with pytest.raises(PublishError):
        writer.commit(prepared)
    effects = run.effects.take()
    assert ("send checkpoints" in effects) == (call == 3)
    assert "offsets" not in effects
    assert not run.cluster.manifests()


def test_a_commit_that_fails_after_the_brokers_took_it_is_recovered(run: FakeRun) -> None:
    writer = run.writer()
    snapshot = run.snapshot(parts=[b"part"])
    run.effects.fail("read back", PublishError("could not be read back in time"))
    prepared = writer.prepare(snapshot, {})
    with pytest.raises(PublishError, match="read back"):
        writer.commit(prepared)
    assert "digits/run.json" not in run.store.objects
    recovered = run.recover()
    assert recovered.checkpoint
    assert recovered.checkpoint.manifest.sequence == 1
    assert recovered.positions == {TOPIC: {0: 10}}
    assert "digits/run.json" in run.store.objects  # recovery makes up for the missing marker


def test_a_commit_that_returns_with_nothing_committed_is_no_commit(run: FakeRun) -> None:
    writer = run.writer()
    run.transaction.loses_commits = True
    prepared = writer.prepare(run.snapshot(), {})
    with pytest.raises(PublishError, match="missing after its commit"):
        writer.commit(prepared)
    assert run.recover().checkpoint is None


def test_a_replaced_worker_publishes_nothing(run: FakeRun) -> None:
    writer, replaced = run.writer(), run.transaction
    prepared = writer.prepare(run.snapshot(), {})
    run.writer()
    assert run.transaction is not replaced
    with pytest.raises(FencedError):
        writer.commit(prepared)
    assert not run.cluster.manifests()


@pytest.mark.parametrize("topic", [TOPIC, "digits.checkpoints"])
def test_a_topic_that_was_created_again_ends_publishing_before_any_object(run: FakeRun, topic: str) -> None:
    writer = run.writer()
    snapshot = run.snapshot()
    run.cluster.create_again(topic)
    with pytest.raises(InputError, match=f"topic {topic} was deleted and created again"):
        writer.prepare(snapshot, {})
    assert not run.store.objects


def test_a_topic_that_is_gone_ends_publishing_before_any_object(run: FakeRun) -> None:
    writer = run.writer()
    del run.cluster.ids[TOPIC]
    with pytest.raises(TopicsError, match=TOPIC):
        writer.prepare(run.snapshot(), {})
    assert not run.store.objects


def test_what_is_not_kept_is_deleted_after_the_commit() -> None:
    run = FakeRun(checkpoint__keep=2)
    writer = run.writer()
    for number in range(5):
        released = True if number == 1 else None
        parts = [b"first" if number < 2 else b"second"]
        manifest = run.publish(writer, run.snapshot(released=released, parts=parts))
        assert run.store.objects == run.keys_of(manifest) | {"digits/run.json"}
    # The newest two, and the state of the last release, which is needed to resume them.
    assert [state.sequence for state in run.cluster.manifests()[-1].kept] == [2, 4, 5]


@pytest.mark.parametrize(("count", "kept"), [(1, []), (3, [4, 6])])
def test_the_objects_of_earlier_releases_stay_until_there_are_enough(count: int, kept: list[int]) -> None:
    run = FakeRun(checkpoint__keep=1, release__keep=count)
    writer = run.writer()
    published: dict[int, Manifest] = {}
    for released in (None, True, False, True, None, True, None, True):
        manifest = run.publish(writer, run.snapshot(released=released))
        assert run.store.objects == run.keys_of(manifest) | {"digits/run.json"}
        published[manifest.sequence] = manifest
        writer = run.writer(run.recover())  # a restart changes nothing
    assert [release.sequence for release in run.cluster.manifests()[-1].earlier] == kept
    for earlier in run.cluster.manifests()[-1].earlier:
        release = published[earlier.sequence].release
        assert release
        assert earlier.objects() == [release.object, release.evaluation, release.canary.object, release.manifest]
        assert (earlier.created_at, earlier.classes) == (release.created_at, len(release.labels))
        assert (earlier.test.correct, earlier.test.total) == (release.test.correct, release.test.total)
        assert run.store.fetch(earlier.object)


def test_a_pinned_release_stays_until_it_is_not_pinned() -> None:
    run = FakeRun(release__keep=2)
    writer = run.writer()
    release = run.publish(writer, run.snapshot(released=True)).release
    assert release
    run.cluster.pinned = Chosen(1, release.sequence, release.object.digest)
    run.publish(writer, run.snapshot(released=True))
    assert "read pins" not in run.effects.take()  # nothing would be dropped
    for released in (True, None, True):
        manifest = run.publish(writer, run.snapshot(released=released))
        writer = run.writer(run.recover())
    assert [earlier.sequence for earlier in manifest.earlier] == [1, 3]
    assert run.store.fetch(release.object)
    run.cluster.pinned = Chosen(2, release.sequence, release.object.digest)  # of another epoch
    assert [earlier.sequence for earlier in run.publish(writer, run.snapshot()).earlier] == [3]
    assert release.object.key not in run.store.objects


def test_pins_that_cannot_be_read_stop_nothing() -> None:
    run = FakeRun(release__keep=1)
    writer = run.writer()
    run.effects.fail("read pins", KafkaUnavailableError("no right"))
    assert [run.publish(writer, run.snapshot(released=True)).sequence for _ in range(2)] == [1, 2]


def test_releases_of_the_last_days_stay_too() -> None:
    run = FakeRun(release__keep=1, release__keep_days=1)
    writer = run.writer()
    published = [run.publish(writer, run.snapshot(released=True)) for _ in range(3)]
    assert [[release.sequence for release in manifest.earlier] for manifest in published] == [[], [1], [1, 2]]
    assert run.keys_of(published[-1]) <= run.store.objects


def test_cleaning_that_fails_costs_nothing(run: FakeRun) -> None:
    writer = run.writer()
    writer.commit(writer.prepare(run.snapshot(), {}))
    run.effects.fail("put run.json", StoreError("no room"))
    with pytest.raises(StoreError):
        writer.clean()
    second = run.publish(writer, run.snapshot())  # the marker is written by the next one
    assert second.sequence == 2
    assert "digits/run.json" in run.store.objects


def test_orphans_that_are_young_stay(run: FakeRun) -> None:
    """A worker that was replaced may still write. Its objects are deleted a day later."""
    orphan = of_a_run(run.settings, 1)
    run.store.put(orphan, b"a state")
    run.publish(run.writer(), run.snapshot())
    assert orphan in run.store.objects


def test_the_marker_of_another_run_ends_cleaning(run: FakeRun) -> None:
    writer = run.writer()
    writer.commit(writer.prepare(run.snapshot(), {}))
    run.store.put("digits/run.json", b'{"cluster_id":"cluster 2","checkpoints_topic_id":"x","epoch":1}')
    with pytest.raises(StateError, match="of another cluster"):
        writer.clean()
