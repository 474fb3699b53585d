import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from no_hard_links import NO_HARD_LINKS
from object_server import CreateOnly, ObjectServer, Right
from structlog.testing import capture_logs

from stream_learner.checkpoints.store import TRIAL_AGE, Store
from stream_learner.config import MIB
from stream_learner.contract.manifest import digest
from stream_learner.contract.objects import Object
from stream_learner.errors import ExitCode, StateError, StoreError, UsageError
from stream_learner.text import printable

KEY = "digits/000000000001-a/state.safetensors"
TRIALS = "digits/trials"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "a folder, with ümlaut"


@pytest.fixture
def store(folder: Path) -> Store:
    return Store(str(folder))


def test_an_object_comes_back_as_it_was(store, folder):
    written = store.put(KEY, b"bytes")
    assert (folder / KEY).read_bytes() == b"bytes"
    assert written == Object(KEY, 5, digest(b"bytes"))
    assert store.fetch(written) == store.get(KEY) == b"bytes"
    assert store.get("digits/missing") is None


def test_what_is_known_is_not_read_again(store, folder):
    first, second = store.put(KEY, b"first"), store.put("digits/second", b"second")
    (folder / KEY).unlink()
    known = {first.digest: b"first", digest(b"third"): b"third"}
    assert store.fetch_all([first, second], known) == {first.digest: b"first", second.digest: b"second"}
    with pytest.raises(StateError, match="is missing"):
        store.fetch_all([first, second], {})


def test_an_empty_object_is_one(store):
    assert store.fetch(store.put(KEY, b"")) == b""


def test_a_url_and_a_relative_path_name_the_same_folder(store, folder, monkeypatch):
    written = store.put(KEY, b"bytes")
    assert Store(folder.as_uri()).fetch(written) == b"bytes"
    assert Store(folder.as_uri() + "/").fetch(written) == b"bytes"
    monkeypatch.chdir(folder.parent)
    assert Store(folder.name).fetch(written) == b"bytes"


def test_objects_are_written_once(store):
    store.put(KEY, b"first")
    with pytest.raises(StoreError, match="exists already; objects are written once"):
        store.put(KEY, b"second")
    assert store.get(KEY) == b"first"


@pytest.mark.parametrize("other", [b"other", b"bytes and more", b""])
def test_what_is_not_the_object_of_the_manifest_is_refused(store, folder, other):
    written = store.put(KEY, b"bytes")
    (folder / KEY).write_bytes(other)
    with pytest.raises(StateError, match="is not the one") as caught:
        store.fetch(written)
    assert caught.value.code is ExitCode.STATE
    assert str(len(other)) in str(caught.value)


def test_an_object_that_is_too_large_is_not_read(store):
    store.put(KEY, b"bytes")
    assert store.get(KEY, max_bytes=5) == b"bytes"
    with pytest.raises(StateError, match=r"is not the one that was written \(5 bytes, more than 4\)"):
        store.get(KEY, max_bytes=4)


def test_what_is_no_file_is_not_waited_for(store, folder):
    (folder / KEY).parent.mkdir(parents=True)
    os.mkfifo(folder / KEY)
    with pytest.raises(StateError, match="is not a file"):
        store.get(KEY)


def test_a_missing_object_is_named(store, folder):
    written = store.put(KEY, b"bytes")
    (folder / KEY).unlink()
    with pytest.raises(StateError, match=r"state\.safetensors, which a manifest names, is missing"):
        store.fetch(written)


def test_a_store_may_move(store, folder, tmp_path):
    written = store.put(KEY, b"bytes")
    folder.rename(tmp_path / "elsewhere")
    assert Store(str(tmp_path / "elsewhere")).fetch(written) == b"bytes"
    with pytest.raises(StateError, match=r"is missing; .* or set checkpoint\.store to where the run's objects are"):
        Store(str(folder)).fetch(written)


def uses(store: Store, key: str) -> list[Callable[[], object]]:
    return [
        lambda: store.get(key),
        lambda: store.fetch(Object(key, 0, digest(b""))),
        lambda: store.put(key, b""),
        lambda: store.delete([key]),
        lambda: store.times(key),
    ]


@pytest.mark.parametrize(
    "key",
    ["..", ".", "", "../victim", "digits/../../victim", "digits/./run.json", "digits//run.json", "/victim", "digits/..",
     "digits\\..\\victim", "digits/a\nb", "digits/\x1b[2J", "digits/\u202e", "digits/\0"],
)  # fmt: skip
@pytest.mark.parametrize("bucket", [False, True])
def test_no_key_leads_out_of_the_store(store, folder, bucket, key):
    store.put("digits/run.json", b"{}")
    victim = folder.parent / "victim"
    victim.write_bytes(b"")
    for use in uses(Store("s3://bucket/objects") if bucket else store, key):
        with pytest.raises(StateError, match="is not the key of an object") as caught:
            use()
        assert str(caught.value).isprintable()
    assert victim.exists()
    assert store.get("digits/run.json") == b"{}"


@pytest.mark.parametrize("linked", ["digits", KEY.rsplit("/", 1)[0], KEY])
@pytest.mark.parametrize("outside", [False, True])
def test_no_link_is_followed(store, folder, tmp_path, linked, outside):
    behind = tmp_path / "outside" if outside else folder / "another"
    target = behind / (KEY.removeprefix(linked).removeprefix("/") or "file")
    target.parent.mkdir(parents=True)
    target.write_bytes(b"of somebody else")
    link = folder / linked
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target if linked == KEY else behind)
    for use in uses(store, KEY):
        with pytest.raises(StateError, match=r"is a symbolic link or lies behind one, .* checkpoint\.store"):
            use()
    assert target.read_bytes() == b"of somebody else"


def test_the_store_itself_may_be_a_link(store, folder, tmp_path):
    written = store.put(KEY, b"bytes")
    (tmp_path / "link").symlink_to(folder)
    for location in (str(tmp_path / "link"), (tmp_path / "link").as_uri()):
        linked = Store(location)
        assert linked.fetch(written) == b"bytes"
        assert linked.times("digits").keys() == {KEY}


def test_credentials_in_a_url_are_not_told():
    store = Store("s3://user:secret@bucket/objects?token=secret#secret")
    assert store.url == "s3://bucket/objects"
    for location in ("nonsense://user:secret@host?secret", "s3://user:sec/secret@bucket/objects"):
        with pytest.raises(UsageError) as caught:
            Store(location)
        assert "secret" not in printable(str(caught.value))


def test_times_are_those_of_the_writing(store):
    store.put(KEY, b"bytes")
    store.put("digits/run.json", b"{}")
    store.put("digits2/run.json", b"{}")
    times = store.times("digits/")
    assert times.keys() == {KEY, "digits/run.json"}
    assert all(abs(datetime.now(UTC) - written) < timedelta(hours=1) for written in times.values())
    assert store.times("digits/000000000001-a").keys() == {KEY}
    assert store.times("nothing/") == {}


def test_deleting_leaves_no_empty_folder_and_may_be_repeated(store, folder):
    store.put(KEY, b"bytes")
    store.put("digits/run.json", b"{}")
    store.delete([KEY, "digits/never-was", KEY])
    assert store.times("digits/").keys() == {"digits/run.json"}
    assert not (folder / KEY).parent.exists()
    store.put(KEY, b"again")


def test_a_file_where_a_folder_should_be_is_a_store_that_fails(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"checkpoint\.store file:.*file cannot be used") as caught:
        Store(str(tmp_path / "file"))
    assert caught.value.code is ExitCode.STORE
    with pytest.raises(StoreError, match="cannot be used"):
        Store(str(tmp_path / "file" / "below"))


def test_a_folder_that_fails_later_is_a_store_that_fails(store, folder):
    written = store.put(KEY, b"bytes")
    (folder / KEY).unlink()
    (folder / KEY).parent.rmdir()
    (folder / KEY).parent.write_text("a file where a folder should be")
    with pytest.raises(StoreError, match="cannot be written") as caught:
        store.put(KEY, b"bytes")
    assert "\n" not in str(caught.value)
    with pytest.raises(StoreError, match="cannot be read"):
        store.fetch(written)


@pytest.mark.parametrize("location", ["ftp://host/folder", "nonsense://x"])
def test_an_unknown_kind_of_url_is_refused(location):
    with pytest.raises(UsageError, match=r"checkpoint\.store = .* is not a folder or a known URL") as caught:
        Store(location)
    assert "\n" not in str(caught.value)


def test_what_a_killed_writer_left_is_listed_and_deleted(store, folder):
    store.put(KEY, b"bytes")
    (folder / f"{KEY}#1").write_bytes(b"by")
    assert store.times("digits/000000000001-a").keys() == {KEY, f"{KEY}#1"}
    store.delete([KEY, f"{KEY}#1"])
    assert not list(folder.iterdir())


def test_a_trial_leaves_nothing(store, folder):
    store.try_out(TRIALS)
    assert not list(folder.iterdir())
    store.put(KEY, b"bytes")
    with pytest.raises(StoreError, match="exists already"):
        store.put(KEY, b"bytes")


def test_what_a_killed_trial_left_is_swept_once_it_is_old(store, folder):
    names = ["old", "old#1", "young", "young#1"]
    (folder / TRIALS).mkdir(parents=True)
    for name in names:
        (folder / TRIALS / name).write_bytes(b"half")
    for name in names[:2]:
        os.utime(folder / TRIALS / name, (0, datetime.now(UTC).timestamp() - 1.1 * TRIAL_AGE.total_seconds()))
    store.try_out(TRIALS)
    assert store.times("digits").keys() == {f"{TRIALS}/{name}" for name in names[2:]}


def test_trials_at_the_same_time_do_not_disturb_each_other(folder):
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(lambda: Store(str(folder)).try_out(TRIALS)) for _ in range(100)]:
            done.result()
    assert not list(folder.iterdir())


def test_a_store_that_is_gone_fails_its_trial(store, folder):
    folder.rmdir()
    folder.write_text("a file where a folder should be")
    with pytest.raises(
        StoreError, match=r"checkpoint\.store file:.* failed a trial: .*free disk space, give it"
    ) as caught:
        store.try_out(TRIALS)
    assert caught.value.code is ExitCode.STORE
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [errno.EPERM, errno.EOPNOTSUPP])  # FAT and most of FUSE; SMB
def test_a_file_system_without_hard_links(folder, error):
    script = (
        f"from stream_learner.checkpoints.store import Store\nstore = Store({str(folder)!r})\n"
        f"store.try_out({TRIALS!r})\nstore.put({KEY!r}, b'first')\nstore.put({KEY!r}, b'bytes')"
    )
    command = [sys.executable, NO_HARD_LINKS, str(error), sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("does not support create-only writes") == 1
    assert os.strerror(error) in done.stdout
    assert Store(str(folder)).times("digits").keys() == {KEY}
    assert (folder / KEY).read_bytes() == b"bytes"


@pytest.mark.parametrize("kind", [stat.S_ISDIR, stat.S_ISREG])
def test_folders_need_not_be_flushed_where_that_is_not_supported(store, monkeypatch, kind):
    flush = os.fsync

    def fsync(descriptor: int) -> None:
        if kind(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    if kind is stat.S_ISDIR:
        store.try_out(TRIALS)
        assert store.fetch(store.put(KEY, b"bytes")) == b"bytes"
        return
    with pytest.raises(StoreError, match=r"cannot be written: .*Invalid argument"):
        store.put(KEY, b"bytes")


@pytest.fixture
def server(monkeypatch) -> Iterator[ObjectServer]:
    server = ObjectServer()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    yield server
    server.close()


@pytest.mark.parametrize("create_only", CreateOnly)
def test_a_bucket_with_or_without_create_only(server, create_only):
    server.create_only = create_only
    store = Store("s3://bucket/objects")
    with capture_logs() as logs:
        store.try_out(TRIALS)
    assert not server.objects
    assert [line["event"].split(";")[0] for line in logs] == (
        [] if create_only is CreateOnly.KEPT else ["checkpoint.store does not support create-only writes"]
    )
    large = bytes(6 * MIB)  # obstore would write it in parts
    assert store.fetch(store.put(KEY, large)) == large
    if create_only is not CreateOnly.KEPT:
        assert store.fetch(store.put(KEY, b"second")) == b"second"
        return
    with pytest.raises(StoreError, match="exists already"):
        store.put(KEY, b"second")


@pytest.mark.parametrize("right", Right)
def test_a_bucket_that_forbids_something(server, right):
    server.forbidden = right
    with pytest.raises(StoreError, match=r"failed a trial: object.* cannot be .*403.*; give|403.* give it the rights"):
        Store("s3://bucket/objects").try_out(TRIALS)
    assert not server.objects


def test_a_reader_makes_no_folder(folder):
    with pytest.raises(StoreError, match=r"checkpoint\.store file:.* is missing; set it to where the run's objects"):
        Store(str(folder), create=False)
    assert not folder.exists()
    Store(str(folder))
    assert Store(str(folder), create=False).get(KEY) is None
