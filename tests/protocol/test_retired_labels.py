"""Labels are allowed, renamed and merged during a run. Its classes retire in the same way if it is killed."""

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
import safetensors.numpy
from feed import Draft, good, whole_batches
from harness import NewRun
from outputs import Log

BATCH = 8
SETTINGS = {
    "batch__size": BATCH,
    "batch__linger_s": 3600.0,  # only full batches close, wherever a run begins
    "labels__min_records": 2,
    "release__every_records": 300,
    "checkpoint__keep": 30,
    "memory__segment_bytes": 32 * 1024,
    "rejects__max_share": 1.0,
    "rejects__max_in_a_row": 1_000_000,
}
RULES = (
    'labels.aliases={ "1" = "0", " 3 " = "three" }',
    'labels.allowed=["0", "three", "4", "5", "6", "7", "8", "9", "10"]',
)
UNDER_RULES = [word for rule in RULES for word in ("--set", rule)]
NOT_ALLOWED = {b"2", b"unheard of"}


def under_rules(drafts: Iterable[Draft]) -> Iterator[Draft]:
    """The drafts, some with blanks around their labels, some with another label, and what becomes of them."""
    for i, draft in enumerate(drafts):
        headers = dict(draft.headers)
        if i % 7 == 0:
            headers["label"] = b"  " + headers["label"] + b"\n"
        if i % 50 == 49:
            headers["label"] = b"unheard of"
        fate = "label_not_allowed" if headers["label"].strip() in NOT_ALLOWED else draft.fate
        yield draft._replace(headers=[*headers.items()], fate=fate)


def released(log: Log) -> tuple[list[str], list[int], dict[str, np.ndarray]]:
    release = log.manifest["release"]
    return release["labels"], release["retired"], safetensors.numpy.load(log.release())


def test_classes_retire_at_a_start_and_a_killed_run_learns_the_same(new_run: NewRun) -> None:
    # The first record of each label is rejected once its batch is learned, so it fills the batch like another.
    first = whole_batches(good(600), BATCH)
    first[:10] = [draft._replace(fate="rare_label") for draft in first[:10]]
    later = whole_batches(under_rules(good(1600)), BATCH)
    undisturbed = new_run(**SETTINGS)
    undisturbed.feed(first)
    log = undisturbed.finish(undisturbed.start())
    assert released(log)[:2] == ([*"0123456789"], [])
    assert Counter(r for w in log.windows for r in w["rejected"]) == {"rare_label": 1}

    killed = new_run(**SETTINGS, input__topics=[undisturbed.input])
    killed.fed = list(undisturbed.fed)
    killed.finish(killed.start())
    undisturbed.feed(later)
    killed.fed = list(undisturbed.fed)
    saved = len(killed.read("history"))
    worker = killed.start(*UNDER_RULES)
    worker.reaches("checkpoint_sequence", saved + 1)
    worker.kill()
    ends = [run.finish(run.start(*UNDER_RULES)) for run in (undisturbed, killed)]

    for log in ends:
        labels, retired, tensors = released(log)
        assert labels == [*"0123456789", "three"]
        assert retired == [1, 2, 3]
        assert not tensors["head.weight"][[1, 2, 3]].any()
        assert (tensors["head.bias"][[1, 2, 3]] == np.float32(-1e30)).all()
        assert {c["label"] for c in log.manifest["release"]["test"]["per_class"]} == {*"0456789", "three"}
        evaluation = safetensors.numpy.load(log.objects[log.manifest["release"]["evaluation"]["key"]])
        assert not {1, 2, 3} & {*evaluation["labels"].tolist(), *evaluation["predictions"].tolist()}
    one, other = (log.manifest for log in ends)
    assert one["state"]["digest"] == other["state"]["digest"]
    assert one["release"]["object"]["digest"] == other["release"]["object"]["digest"]

    # Learned again from the last checkpoint before the rules, the classes retire as they did.
    rebuild = killed.call("rebuild", "--from", str(saved), "--to", str(other["sequence"]), *UNDER_RULES)
    assert f"state {other['state']['digest']}, as published" in rebuild.ends(0)

    worker = undisturbed.start("--set", "model.max_classes=7", *UNDER_RULES)
    assert "it has 8 classes, more than model.max_classes = 7" in worker.ends(6)
