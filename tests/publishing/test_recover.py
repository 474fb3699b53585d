"""Recovery, the mirror of the checkpoint writer: where it continues, what it refuses, and what it leaves as it was."""

import weakref
from collections.abc import Callable

import pytest
from fake_run import FakeRun, of_a_run
from fakes import TOPIC, Written
from msgspec.structs import replace

from stream_learner.contract.documents import MAX_EPOCH
from stream_learner.contract.manifest import Manifest, decode_manifest, encode
from stream_learner.errors import InputError, KafkaUnavailableError, StateError, StoreError, StreamLearnerError
from stream_learner.publishing.recover import Recovery, check_positions

CHECKPOINTS, HISTORY, MARKER = "digits.checkpoints", "digits.history", "digits/run.json"


@pytest.fixture
def run() -> FakeRun:
    return FakeRun()


@pytest.fixture
def published(run: FakeRun) -> FakeRun:
    """A run that has published three checkpoints, the second one with a release."""
    writer = run.writer()
    for released in (None, True, None):
        run.publish(writer, run.snapshot(released=released, parts=[b"part"]))
    run.effects.take()
    return run


def is_left_as_it_was(run: FakeRun, error: type[StreamLearnerError], match: str) -> None:
    """Neither a look nor a take-over changes anything, and both raise the error."""
    objects, before = run.store.objects, {topic: [*written] for topic, written in run.cluster.written.items()}
    run.effects.take()
    with pytest.raises(error, match=match):
        run.recovery().look()
    assert "fence" not in run.effects.take()
    with pytest.raises(error, match=match):
        run.recover()
    assert run.store.objects == objects
    assert {topic: written for topic, written in run.cluster.written.items() if written} == before


def test_a_first_start(run: FakeRun) -> None:
    run.recovery().look()
    recovered = run.recover()
    assert recovered.checkpoint is None
    assert (recovered.epoch, recovered.positions) == (1, {TOPIC: {0: 0}})
    assert run.store.objects == set()  # the first commit writes the marker


def test_a_first_start_begins_where_the_input_does(run: FakeRun) -> None:
    run.cluster.first = 7
    assert run.recover().positions == {TOPIC: {0: 7}}


def test_a_restart_continues_from_the_newest_checkpoint(published: FakeRun) -> None:
    run = published
    recovered = run.recover()
    assert recovered.checkpoint
    assert recovered.checkpoint.manifest == run.cluster.manifests()[-1]
    assert recovered.checkpoint.tensors["x"].item() == 20
    assert [*recovered.checkpoint.parts.values()] == [b"part"]
    assert recovered.checkpoint.released
    assert recovered.checkpoint.released[0]["x"].item() == 10
    assert (recovered.epoch, recovered.positions) == (1, {TOPIC: {0: 30}})
    assert run.publish(run.writer(recovered), run.snapshot()).sequence == 4


def test_the_state_is_given_away(published: FakeRun) -> None:
    """A worker keeps its recovery, but not the state that it resumed from."""
    recovery = published.recovery()
    recovery.look()
    recovered = recovery.take_over(published.transaction.fence)
    state = weakref.ref(recovered.checkpoint)
    del recovered
    assert state() is None


def test_checks_come_before_fencing_and_the_manifests_are_read_after_it(published: FakeRun) -> None:
    published.recover()
    assert published.effects.take() == ["check topics for worker", "fence", "read manifests"]


def test_a_look_changes_nothing(published: FakeRun) -> None:
    objects = published.store.objects
    published.recovery().look()
    assert published.effects.take() == ["check topics for worker", "look at manifests"]
    assert published.store.objects == objects


def test_a_take_over_fetches_only_what_came_since_the_look(published: FakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    fetch = published.store.fetch
    monkeypatch.setattr(published.store, "fetch", lambda one: (fetched.append(one.key), fetch(one))[1])
    recovery = published.recovery()
    recovery.look()
    del fetched[:]
    recovery.take_over(published.transaction.fence)
    assert fetched == []
    recovery = published.recovery()
    recovery.look()
    newest = published.publish(published.writer(), published.snapshot(parts=[b"part", b"another"]))
    del fetched[:]
    recovery.take_over(published.transaction.fence)
    assert newest.state.key in fetched
    assert len(fetched) == 3  # with the last release's state and the new part


def test_a_checkpoint_that_is_committed_between_a_look_and_the_fence_is_taken(published: FakeRun) -> None:
    recovery = published.recovery()
    recovery.look()
    active = published.writer()

    def fence() -> None:
        published.publish(active, published.snapshot())
        published.transaction.fence()

    recovered = recovery.take_over(fence)
    assert recovered.checkpoint
    assert recovered.checkpoint.manifest.sequence == 4


def test_a_state_that_was_deleted_during_a_look_is_forgiven_if_a_newer_manifest_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = FakeRun(checkpoint__keep=1)
    writer = run.writer()
    run.publish(writer, run.snapshot())
    newest_manifest, looks = run.cluster.newest_manifest, 0

    def published_meanwhile(*arguments):
        nonlocal looks
        found, looks = newest_manifest(*arguments), looks + 1
        if looks == 1:
            run.publish(writer, run.snapshot())
        return found

    monkeypatch.setattr(run.cluster, "newest_manifest", published_meanwhile)
    run.recovery().look()
    assert looks == 2


def test_a_state_that_is_missing_is_refused_after_a_second_look(published: FakeRun) -> None:
    published.store.delete([published.cluster.manifests()[-1].state.key])
    is_left_as_it_was(published, StateError, "which a manifest names, is missing")
    published.effects.take()
    with pytest.raises(StateError):
        published.recovery().look()
    assert published.effects.take().count("look at manifests") == 2


def test_a_state_with_other_bytes_is_refused(published: FakeRun) -> None:
    state = published.cluster.manifests()[-1].state
    published.store.replace(state.key, bytes(state.size))
    is_left_as_it_was(published, StateError, "is not the one a manifest names")


def test_the_state_of_the_last_release_is_needed_too(published: FakeRun) -> None:
    released = published.cluster.manifests()[-1].released_state()
    assert released
    published.store.delete([released.object.key])
    is_left_as_it_was(published, StateError, "is missing")


@pytest.mark.parametrize(
    ("section", "key", "value", "match"),
    [
        ("run", "seed", 7, "its seed is 0, the settings say 7"),
        ("model", "height", 9, "its model.height is 8, the settings say 9"),
        ("learning", "optimizer", "sgd", "its optimizer is"),
    ],
)
def test_other_settings_are_refused(published: FakeRun, section: str, key: str, value: object, match: str) -> None:
    other = FakeRun(**{f"{section}__{key}": value, "run__id": "digits"})
    published.settings = other.settings
    is_left_as_it_was(published, StateError, match)


def test_an_input_that_was_created_again_is_refused(published: FakeRun) -> None:
    published.cluster.create_again(TOPIC)
    is_left_as_it_was(published, InputError, f"topic {TOPIC} was deleted and created again")


def test_an_input_that_ends_before_the_position_is_refused(published: FakeRun) -> None:
    del published.cluster.input[20:]
    is_left_as_it_was(published, InputError, "ends at offset 20, before the run's position 30")


def test_records_that_fell_off_retention_are_refused_or_passed_over(published: FakeRun) -> None:
    published.snapshot()
    published.cluster.first = 35
    is_left_as_it_was(published, InputError, "from offset 30 to 35 were deleted by retention")
    published.settings = FakeRun(input__on_lost="continue").settings
    assert published.recover().positions == {TOPIC: {0: 30}}  # the source notes what is lost


def test_a_manifest_behind_the_mirrored_positions_is_refused_once_it_is_fenced(published: FakeRun) -> None:
    published.cluster.behind = True
    with pytest.raises(StateError, match="a manifest is missing or damaged"):
        published.recover()


def test_foreign_records_are_skipped_and_counted_once(published: FakeRun) -> None:
    published.cluster.written[CHECKPOINTS].append(Written(b"digits", b"not JSON"))
    skipped: list[tuple[str, int]] = []
    recovery = published.recovery(skipped=lambda *found: skipped.append(found))
    recovery.look()
    recovery.look()
    published.cluster.written[CHECKPOINTS].append(Written(b"digits", b"[]"))
    assert recovery.take_over(published.transaction.fence).checkpoint
    assert skipped == [(CHECKPOINTS, 1), (CHECKPOINTS, 1)]


def test_only_foreign_records_are_no_first_start(run: FakeRun) -> None:
    run.cluster.written[CHECKPOINTS].append(Written(b"digits", b"not JSON"))
    is_left_as_it_was(run, StateError, "holds no manifest of run 'digits', only foreign")


@pytest.mark.parametrize("trace", ["marker", "objects", "positions"])
def test_a_run_that_has_published_is_not_begun_again(published: FakeRun, trace: str) -> None:
    """Each trace that is left is enough by itself."""
    run = published
    if trace != "marker":
        run.store.delete([MARKER])
    if trace != "objects":
        run.store.delete([*(run.store.objects - {MARKER})])
    if trace != "positions":
        run.cluster.positions = {}
    del run.cluster.written[CHECKPOINTS], run.cluster.written[HISTORY]
    objects = run.store.objects
    with pytest.raises(StateError, match="has published before, but its checkpoints topic holds no manifest"):
        run.recover()
    assert run.store.objects == objects


def test_what_a_killed_first_publication_leaves_does_not_stop_the_next_start(run: FakeRun) -> None:
    run.writer().prepare(run.snapshot(parts=[b"part"]), {})
    for key in ("digits/fenced/host-9108", "digits/trials/1", "digits/lives.json"):
        run.store.put(key, b"")
    assert run.recover().checkpoint is None
    run.store.put(of_a_run(run.settings, 2), b"a state")
    with pytest.raises(StateError, match="has published before"):
        run.recover()


def without_manifests(run: FakeRun) -> None:
    run.cluster.create_again(CHECKPOINTS)


def with_foreign_records(run: FakeRun) -> None:
    run.cluster.create_again(CHECKPOINTS)
    run.cluster.written[CHECKPOINTS].append(Written(b"digits", b"not JSON"))


@pytest.mark.parametrize("lost", [without_manifests, with_foreign_records])
def test_a_run_that_is_started_over_has_an_epoch_of_its_own(
    published: FakeRun, lost: Callable[[FakeRun], None]
) -> None:
    run = published
    lost(run)
    with pytest.raises(StateError):
        run.recover()
    recovered = run.recover(fresh=True)
    assert recovered.checkpoint is None
    assert (recovered.epoch, recovered.positions) == (2, {TOPIC: {0: 0}})
    # Killed before its first commit: the marker keeps the epoch from being used again.
    del run.cluster.written[CHECKPOINTS]
    recovered = run.recover(fresh=True)
    assert recovered.epoch == 3
    manifest = run.publish(run.writer(recovered), run.snapshot())
    assert manifest.order == (3, 1)
    assert manifest.predecessor is None
    assert run.recover().epoch == 3


def test_a_manifest_that_is_there_is_taken_even_when_a_run_may_start_over(published: FakeRun) -> None:
    recovered = published.recover(fresh=True)
    assert recovered.checkpoint
    assert recovered.epoch == 1


def test_a_manifest_in_the_history_alone_is_taken_unless_the_run_starts_over(published: FakeRun) -> None:
    del published.cluster.written[CHECKPOINTS]
    assert published.recover().checkpoint
    recovered = published.recover(fresh=True)
    assert recovered.checkpoint is None
    assert recovered.epoch == 2


def test_the_last_epoch_has_no_successor(published: FakeRun) -> None:
    def forge(manifest: Manifest) -> bytes:
        return encode(manifest).replace(b'"epoch":1,', f'"epoch":{MAX_EPOCH},'.encode())

    value = forge(published.cluster.manifests()[-1])
    assert decode_manifest(value).epoch == MAX_EPOCH
    published.cluster.create_again(CHECKPOINTS)
    published.cluster.written[HISTORY].append(Written(b"3", value))
    with pytest.raises(StateError, match=f"has epoch {MAX_EPOCH}, the highest possible one"):
        published.recover(fresh=True)


def test_a_missing_marker_is_written_by_the_next_start(published: FakeRun) -> None:
    published.store.delete([MARKER])
    published.recovery().look()
    assert MARKER not in published.store.objects
    published.recover()
    assert MARKER in published.store.objects


@pytest.mark.parametrize("change", ["cluster", "topic"])
def test_the_marker_tells_another_cluster_and_another_topic(published: FakeRun, change: str) -> None:
    if change == "cluster":
        published.cluster.id = "cluster 2"
    else:
        published.cluster.ids[CHECKPOINTS] = "another id"
    is_left_as_it_was(published, StateError, "of another cluster or of a checkpoints topic that was deleted and")


def test_a_damaged_marker_is_refused(published: FakeRun) -> None:
    published.store.replace(MARKER, b"{}")
    is_left_as_it_was(published, StateError, "run.json is damaged")


@pytest.mark.parametrize("error", [KafkaUnavailableError("no broker"), StoreError("no bucket")])
def test_a_take_over_that_fails_may_be_tried_again(published: FakeRun, error: StreamLearnerError) -> None:
    recovery: Recovery = published.recovery()
    if isinstance(error, StoreError):
        published.store.delete([MARKER])
        published.effects.fail("put run.json", error)
    else:
        published.effects.fail("read manifests", error)
    with pytest.raises(type(error)):
        recovery.take_over(published.transaction.fence)
    recovered = recovery.take_over(published.transaction.fence)
    assert recovered.positions == {TOPIC: {0: 30}}
    assert MARKER in published.store.objects


@pytest.mark.parametrize(
    ("positions", "match"),
    [
        ({TOPIC: {0: 30}, "another": {0: 1}}, "learned from topic another, which is not in input.topics"),
        ({TOPIC: {0: 30, 2: 1, 4: 1}}, f"{TOPIC} has fewer partitions than before: 2, 4 missing"),
    ],
)
def test_an_input_that_lacks_what_was_learned_is_refused(
    published: FakeRun, positions: dict[str, dict[int, int]], match: str
) -> None:
    manifest = replace(published.cluster.manifests()[-1], positions=positions)
    with pytest.raises(InputError, match=match):
        check_positions(manifest, *published.cluster.input_bounds(), on_lost="continue")


def test_new_partitions_and_topics_are_read_from_their_first_offset(published: FakeRun) -> None:
    manifest = published.cluster.manifests()[-1]
    first = {TOPIC: {0: 0, 1: 0}, "another": {0: 5}}
    end = {TOPIC: {0: 30, 1: 8}, "another": {0: 9}}
    assert check_positions(manifest, first, end, "stop") == {TOPIC: {0: 30, 1: 0}, "another": {0: 5}}
    first[TOPIC][1] = 3  # records of the new partition fell off retention before they were learned
    with pytest.raises(InputError, match="from offset 0 to 3 were deleted by retention"):
        check_positions(manifest, first, end, "stop")
