import os
import time
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from stream_learner.checkpoints.retention import ORPHAN_AGE, delete_dropped, keep, keep_releases, share, sweep_orphans
from stream_learner.checkpoints.store import Store
from stream_learner.contract.ledger import Ledger
from stream_learner.contract.manifest import Arithmetic, Manifest, digest
from stream_learner.contract.objects import Earlier, Object, State
from stream_learner.contract.window import accuracy
from stream_learner.errors import StateError, StoreError

HOUR_S = 3600.0
NOW_S = time.time()
STATE = "state.safetensors"
RELEASED = {"release.safetensors", "evaluation.safetensors", "canary.safetensors"}


def state(sequence: int) -> State:
    return State(sequence, Object(f"digits/{sequence}/state", 0, digest(b"")))


def manifest(kept: list[State], parts: list[Object] | None = None, earlier: list[Earlier] | None = None) -> Manifest:
    """The manifest of the newest of these states, their parts, and earlier releases."""
    return Manifest(
        program="",
        run_id="digits",
        epoch=1,
        sequence=kept[-1].sequence,
        predecessor=None,
        created_at="",
        positions={},
        spans={},
        lost={},
        ledger=Ledger(0, [], ""),
        arithmetic=Arithmetic("2.5.0", "cpu", "AVX2", 1, digest(b"settings")),
        store="file:///store",
        topic_ids={},
        state=kept[-1].object,
        kept=kept,
        parts=parts or [],
        released=False,
        decision=None,
        release=None,
        earlier=earlier or [],
    )


def earlier_release(sequence: int, created_at: str = "", objects: list[Object] | None = None) -> Earlier:
    release, evaluation, canary = objects or [Object("", 0, digest(b""))] * 3
    score = accuracy([]).overall
    return Earlier(
        sequence=sequence,
        created_at=created_at,
        object=release,
        evaluation=evaluation,
        canary=canary,
        classes=1,
        validation=score,
        test=score,
    )


@pytest.mark.parametrize(
    ("existing", "releases", "count", "kept"),
    [
        ([], [], 3, [1]),
        ([1], [], 3, [1, 2]),
        ([1, 2, 3], [], 3, [2, 3, 4]),
        ([1, 2, 3], [1], 3, [1, 2, 3, 4]),  # the last release's state is kept beside them
        ([1, 5, 6, 7], [1], 3, [1, 6, 7, 8]),
        ([1, 5, 6, 7], [1, 8], 3, [1, 6, 7, 8]),  # the new one is the last release, and the others need the one before
        ([1, 6, 7, 8], [1, 8], 3, [1, 7, 8, 9]),
        ([1, 7, 8, 9], [1, 8], 3, [8, 9, 10]),
        ([1, 5, 6, 7], [1, 6, 8], 3, [6, 7, 8]),
        ([1, 2, 3], [3], 3, [2, 3, 4]),
        ([1, 2, 3], [], 1, [4]),
        ([1, 2, 3, 4], [1, 5], 1, [5]),
        ([1, 2, 3, 4, 5, 6], [], 2, [6, 7]),  # fewer are wanted than before
    ],
)
def test_the_newest_states_stay_and_those_of_their_releases(existing, releases, count, kept):
    def saved(sequence: int) -> State:
        last = max((release for release in releases if release <= sequence), default=None)
        return msgspec.structs.replace(state(sequence), release=last)

    new = (existing[-1] if existing else 0) + 1
    assert keep([saved(s) for s in existing], saved(new), count) == [saved(s) for s in kept]


def test_states_share_their_parts():
    a, b, c = (Object(f"digits/memory/{name}", 1, digest(name.encode())) for name in "abc")
    later = msgspec.structs.replace(state(4), release=2)
    kept, parts = share([state(2), later], {1: [c], 2: [a, b], 4: [b, c, b]})
    shared = manifest(kept, parts)
    assert parts == [a, b, c]
    assert [(s.sequence, s.object, s.release, shared.parts_of(s)) for s in kept] == [
        (2, state(2).object, None, [a, b]),
        (4, state(4).object, 2, [b, c, b]),
    ]


NOW = "2026-01-10T00:00:00.000Z"


@pytest.mark.parametrize(
    ("days_old", "count", "days", "kept"),
    [
        ([], 1, None, []),
        ([3, 2, 1], 1, None, []),
        ([3, 2, 1], 2, None, [1]),
        ([3, 2, 1], 10, None, [3, 2, 1]),
        ([3, 2, 1], 1, 2.5, [2, 1]),  # younger ones stay too
        ([3, 2, 1], 3, 1.5, [2, 1]),  # the newest stay, however old
        ([3, 2, 1], 1, 0.5, []),
        ([1, 2, 0.5], 1, 1.5, [1, 0.5]),  # a clock that was set
        ([1.0] * 200, 10, 30, [1.0] * 99),
    ],
)
def test_the_newest_releases_stay_and_the_young_ones(days_old, count, days, kept):
    def release(place: int, age_days: float) -> Earlier:
        return earlier_release(place + 1, (datetime.fromisoformat(NOW) - timedelta(days=age_days)).isoformat())

    earlier = [release(place, age) for place, age in enumerate(days_old)]
    found = keep_releases(earlier, count, days, NOW)
    assert found == sorted(found, key=lambda one: one.sequence)
    assert found == [one for one in earlier if one in found]
    assert [days_old[one.sequence - 1] for one in found] == kept


class Run:
    """Checkpoints in a real folder, whose files can be made older."""

    def __init__(self, path: Path):
        self.path = path
        self.store = Store(str(path))

    def checkpoint(self, sequence: int, attempt: str = "a", age_s: float = 0.0) -> State:
        where = f"digits/{sequence:012d}-{attempt}"
        written = self.store.put(f"{where}/state.safetensors", b"state")
        for file in (self.path / where).iterdir():
            os.utime(file, (NOW_S - age_s, NOW_S - age_s))
        return State(sequence, written)

    def release(self, sequence: int, age_s: float = 0.0) -> Earlier:
        """Write objects of a release into the folder of its checkpoint."""
        where = f"digits/{sequence:012d}-a"
        objects = [self.store.put(f"{where}/{name}", name.encode()) for name in sorted(RELEASED)]
        for name in RELEASED:
            os.utime(self.path / where / name, (NOW_S - age_s, NOW_S - age_s))
        return earlier_release(sequence, objects=objects)

    def part(self, name: str, age_s: float = 0.0) -> Object:
        written = self.store.put(f"digits/memory/{name}", name.encode())
        os.utime(self.path / "digits/memory" / name, (NOW_S - age_s, NOW_S - age_s))
        return written

    def parts(self) -> set[str]:
        return {key.removeprefix("digits/memory/") for key in self.store.times("digits/memory/")}

    def names(self) -> dict[str, set[str]]:
        """The names of the objects in each checkpoint's folder."""
        found: dict[str, set[str]] = {}
        for key in self.store.times("digits/").keys() - {"digits/run.json"}:
            found.setdefault(key.split("/")[1], set()).add(key.split("/")[2])
        return found

    def folders(self) -> set[str]:
        return {key.rsplit("/", 1)[0].removeprefix("digits/") for key in self.store.times("digits/")}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path)
    run.store.put("digits/run.json", b"{}")
    run.store.put("another/000000000001-a/state.safetensors", b"state")
    os.utime(tmp_path / "digits/run.json", (0, 0))
    os.utime(tmp_path / "another/000000000001-a/state.safetensors", (0, 0))
    return run


def test_states_that_are_kept_no_longer_are_deleted_with_all_their_objects(run):
    states = [run.checkpoint(i) for i in (1, 2, 3)]
    run.checkpoint(2, attempt="of-another-worker")
    delete_dropped(run.store, manifest(states[:2]), manifest(states[1:]))
    assert run.folders() == {"000000000002-a", "000000000002-of-another-worker", "000000000003-a", "digits"}
    delete_dropped(run.store, manifest(states[:2]), manifest(states[1:]))  # as after a crash in the middle
    assert len(run.store.times("another/")) == 1


def test_the_objects_of_a_release_outlive_its_state_until_it_is_dropped(run):
    first, second, third = (run.checkpoint(i) for i in (1, 2, 3))
    one, two = run.release(1), run.release(2)
    delete_dropped(run.store, manifest([first, second]), manifest([second, third], earlier=[one, two]))
    assert run.names() == {"000000000001-a": RELEASED, "000000000002-a": {STATE, *RELEASED}, "000000000003-a": {STATE}}
    before = manifest([second, third], earlier=[one, two])
    delete_dropped(run.store, before, manifest([second, third], earlier=[one]))
    assert run.names() == {"000000000001-a": RELEASED, "000000000002-a": {STATE}, "000000000003-a": {STATE}}
    delete_dropped(run.store, manifest([second, third], earlier=[one]), manifest([third]))
    assert run.names() == {"000000000003-a": {STATE}}


def test_the_sweep_leaves_the_objects_of_kept_releases_alone(run):
    age = 10 * ORPHAN_AGE.total_seconds()
    run.checkpoint(1, age_s=age)
    kept, newest = run.release(1, age), run.checkpoint(3)
    run.release(2, age)
    sweep_orphans(run.store, "digits", manifest([newest], earlier=[kept]))
    assert run.names() == {"000000000001-a": RELEASED, "000000000003-a": {STATE}}


def test_parts_that_no_state_has_any_longer_are_deleted(run):
    states = [run.checkpoint(i) for i in (1, 2)]
    first, both, last = (run.part(f"00000000000{i}-a") for i in (1, 2, 3))
    run.part("000000000001-of-another-worker")
    delete_dropped(run.store, manifest(states[:1], [first, both]), manifest(states, [both, last]))
    assert run.parts() == {"000000000002-a", "000000000003-a", "000000000001-of-another-worker"}


def test_parts_that_no_manifest_names_go_once_they_are_old_enough(run):
    age = ORPHAN_AGE.total_seconds()
    named = run.part("000000000001-a", age_s=10 * age)
    run.part("000000000001-killed-long-ago", age_s=age + HOUR_S)
    run.part("000000000002-killed-now", age_s=age - HOUR_S)
    sweep_orphans(run.store, "digits", manifest([run.checkpoint(2)], [named]))
    assert run.parts() == {"000000000001-a", "000000000002-killed-now"}


def test_orphans_go_once_they_are_old_enough(run):
    age = ORPHAN_AGE.total_seconds()
    old = run.checkpoint(1, age_s=10 * age)
    newest = run.checkpoint(4, age_s=0)
    run.checkpoint(2, attempt="killed-long-ago", age_s=age + HOUR_S)
    run.checkpoint(3, attempt="killed-now", age_s=age - HOUR_S)
    run.checkpoint(5, attempt="another-worker", age_s=0)
    sweep_orphans(run.store, "digits", manifest([old, newest]))
    assert run.folders() == {
        "000000000001-a",
        "000000000003-killed-now",
        "000000000004-a",
        "000000000005-another-worker",
        "digits",  # run.json itself
    }
    assert len(run.store.times("another/")) == 1


def test_age_is_taken_by_the_stores_clock_not_by_this_machines(run):
    """The store's clock is three days behind. Objects written just before the newest state are young."""
    behind = 3 * ORPHAN_AGE.total_seconds()
    newest = run.checkpoint(2, age_s=behind)
    run.checkpoint(2, attempt="killed-now", age_s=behind + HOUR_S)
    sweep_orphans(run.store, "digits", manifest([newest]))
    assert "000000000002-killed-now" in run.folders()


def test_without_the_newest_state_there_is_no_clock_and_nothing_is_swept(run):
    newest = run.checkpoint(2)
    run.checkpoint(1, attempt="killed-long-ago", age_s=10 * ORPHAN_AGE.total_seconds())
    run.store.delete([newest.object.key])
    with pytest.raises(StoreError, match="was just written, but is not listed"):
        sweep_orphans(run.store, "digits", manifest([newest]))
    assert "000000000001-killed-long-ago" in run.folders()


def test_a_folder_that_is_kept_is_not_deleted_whatever_the_manifest_before_called_it(run):
    first, second = run.checkpoint(1), run.checkpoint(2)
    part = run.part("000000000001-a")
    elsewhere = msgspec.structs.replace(part, digest=digest(b"another"))
    before = manifest([State(1, second.object), second], [elsewhere])
    delete_dropped(run.store, before, manifest([first, second], [part]))
    assert run.folders() >= {"000000000001-a", "000000000002-a"}
    assert run.parts() == {"000000000001-a"}


@pytest.mark.parametrize("key", ["digits/../victim", "../victim", "digits/000000000001-a/../../victim", "/victim"])
def test_what_lies_outside_of_the_run_is_not_deleted(tmp_path, key):
    run = Run(tmp_path / "store")
    for folder_of in ("store/victim", "victim"):
        (tmp_path / folder_of).mkdir()
        (tmp_path / folder_of / "file").write_text("")
    newest = run.checkpoint(2)
    for name in (key, f"{key}/file"):
        for before in (
            manifest([newest], [Object(name, 0, digest(b""))]),
            manifest([State(1, Object(name, 0, digest(b"")))]),
        ):
            with pytest.raises(StateError, match="is not the key of an object"):
                delete_dropped(run.store, before, manifest([newest]))
    assert (tmp_path / "store/victim/file").exists()
    assert (tmp_path / "victim/file").exists()


def test_files_whose_names_are_no_keys_disturb_no_sweep(run, tmp_path):
    for name in ("back\\slash", "bell\a"):
        stray = tmp_path / "digits" / "000000000001-stray" / name
        stray.parent.mkdir(parents=True, exist_ok=True)
        stray.write_text("")
        os.utime(stray, (0, 0))
    newest = run.checkpoint(2)
    sweep_orphans(run.store, "digits", manifest([newest]))
    assert len([*stray.parent.iterdir()]) == 2


def test_what_lies_behind_a_link_survives_the_sweep(run, tmp_path, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    old = outside / "000000000001-old" / "state.safetensors"
    old.parent.mkdir()
    old.write_text("of somebody else")
    os.utime(old, (0, 0))
    (tmp_path / "digits" / "000000000001-linked").symlink_to(old.parent)
    newest = run.checkpoint(2)
    (tmp_path / "digits" / newest.object.key.split("/")[1] / "linked").symlink_to(old)
    (tmp_path / "digits" / "memory").symlink_to(outside)
    sweep_orphans(run.store, "digits", manifest([newest]))
    assert old.exists()
    run.store.delete(list(run.store.times("digits/")))
    assert old.exists()
