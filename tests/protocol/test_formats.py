"""A record format of a user's own, in a worker: with settings, records that it rejects, and records that it asks to
read later."""

from collections.abc import Callable, Iterable
from pathlib import Path

import child
import pytest
from feed import Draft, good
from harness import NewRun, Run, Worker

from stream_learner.errors import ExitCode

MODULE = '''
from collections import Counter
from pathlib import Path

from pydantic import PrivateAttr

from stream_learner.formats import Fields, Format, Reason, RejectError, RetryLaterError


class Referring(Format):
    """The value is a reference to an image in a bucket, here a name in a folder."""

    folder: Path
    tries: int = 3

    _tried: Counter = PrivateAttr(default_factory=Counter)

    def read(self, record):
        headers = dict(record.headers)
        name = (record.value or b"").decode()
        if not name.startswith(("image-", "slow-")):
            raise RejectError(Reason.BAD_ENVELOPE, f"{name!r} is no reference")
        if name.startswith("slow-"):
            self._tried[record.offset] += 1
            if self._tried[record.offset] < self.tries:
                raise RetryLaterError("the bucket does not answer")
        try:
            image = (self.folder / name).read_bytes()
        except OSError as error:
            raise RetryLaterError(f"cannot read {name}: {error.strerror}") from None
        return Fields(image, headers.get("label"), headers.get("weight"), headers.get("split"))
'''


Start = Callable[[], Worker]


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    """The folder that references lead to."""
    folder = tmp_path / "bucket"
    folder.mkdir()
    return folder


@pytest.fixture
def run(new_run: NewRun, bucket: Path) -> Run:
    return new_run(input__format="referring:Referring", input__format_settings={"folder": str(bucket)})


@pytest.fixture
def start(run: Run, tmp_path: Path) -> Start:
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "referring.py").write_text(MODULE)
    return lambda: run.start_altered(child.with_modules, modules)


def references(bucket: Path, drafts: Iterable[Draft], slow_every: int = 10**6) -> list[Draft]:
    """The same drafts with references instead of images. The bucket holds the images, some of which are slow."""
    referring = []
    for i, draft in enumerate(drafts, start=1):
        name = f"{'slow' if i % slow_every == 0 else 'image'}-{len(list(bucket.iterdir()))}"
        (bucket / name).write_bytes(draft.value or b"")
        referring.append(draft._replace(value=name.encode()))
    return referring


def test_records_are_rejected_or_read_later_and_none_is_lost(run: Run, bucket: Path, start: Start) -> None:
    drafts = references(bucket, good(400), slow_every=100)
    bad = Draft(b"key", b"photo-7", [("label", b"7")], "bad_envelope")
    run.feed([*drafts[:150], bad, *drafts[150:300], bad, *drafts[300:]])
    worker = start()
    log = run.finish(worker)
    assert [letter.value for letter in log.dead_letters] == [b"photo-7"] * 2
    said = worker.text()
    for offset in (99, 200, 300, 401):
        assert f"[0] {offset} cannot be read now: the bucket does not answer; waiting" in said
    assert said.count("cannot be read now") == said.count("records can be read again") == 4


def test_an_outage_loses_nothing_however_the_worker_ends(run: Run, bucket: Path, start: Start) -> None:
    first = references(bucket, good(100))
    run.feed([*first, *references(bucket, good(100, seed=1))])
    away = bucket.with_name("away")
    bucket.rename(away)
    bucket.mkdir()
    for draft in first:
        name = (draft.value or b"").decode()
        (bucket / name).write_bytes((away / name).read_bytes())
    why = f"the record {run.input}[0] 100 cannot be read now: cannot read image-100: No such file or directory"

    def waiting() -> Worker:
        worker = start()
        worker.until("wait", lambda: worker.page("readyz") == (503, f"{why}\n"))
        worker.reaches("format_waits", 1)
        assert worker.page("livez")[0] == 200
        return worker

    worker = waiting()
    worker.reaches("position", 100)  # the open batch does not wait
    worker.stop()
    assert run.saved() == {(run.input, 0): 100}
    for _ in range(4):
        waiting().kill()  # which is not the record's fault
    run.overrides |= {"kafka.request_timeout_s": 10.0, "kafka.give_up_s": 10.0}
    said = start().ends(ExitCode.DEPENDENCY)
    assert f"{why}. The record format has asked to wait for kafka.give_up_s = 10 s. Nothing is lost" in said

    worker = waiting()
    bucket.rename(bucket.with_name("before"))
    away.rename(bucket)
    log = run.finish(worker)
    assert not log.dead_letters
    assert not any(manifest["poisoned"] for manifest in log.manifests)
