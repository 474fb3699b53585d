"""Predictions as servers publish them, and the check that each was evaluated exactly once.

It uses no code of the worker.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from checker import Violation
from confluent_kafka import Producer
from feed import Draft, Fed, client
from outputs import Log, places

CREATED_AT = "2025-01-01T00:00:00.000Z"
NO_PREDICTION = "no prediction"
TO_OUTCOME = {NO_PREDICTION: "invalid", "": "without_id"}


class Forecast(NamedTuple):
    """A record of the predictions topic.

    `id` is empty for a prediction without an id, and NO_PREDICTION for other records.
    """

    id: str
    release: int
    label: str
    key: bytes | None
    value: bytes | None
    timestamp_ms: int


def forecast(
    run_id: str, id_: str, release: int, label: str, timestamp_ms: int = 0, changed: dict[str, Any] | None = None
) -> Forecast:
    """Return a prediction. With `changed` fields it is not a prediction of the run."""
    document = {
        "schema_version": 1,
        "run_id": run_id,
        "epoch": 1,
        "release": release,
        "id": id_ or None,
        "label": label,
        "probabilities": {label: 0.75, "other": 0.25},
        "created_at": CREATED_AT,
    }
    value = json.dumps(document | (changed or {})).encode()
    return Forecast(NO_PREDICTION if changed else id_, release, label, id_.encode() or None, value, timestamp_ms)


def send(bootstrap_servers: str, topic: str, forecasts: Iterable[Forecast]) -> list[Forecast]:
    """Write forecasts to the predictions topic, and return them in the order of offsets."""
    producer = Producer(client(bootstrap_servers) | {"linger.ms": 5})
    sent = list(forecasts)
    for one in sent:
        producer.produce(topic, one.value, one.key, 0, timestamp=one.timestamp_ms)
    producer.flush()
    return sent


def send_drafts(
    bootstrap_servers: str, topic: str, drafts: Iterable[tuple[Draft, int]], partition: int = 0
) -> list[Fed]:
    """Write records to an empty partition, each with a timestamp in milliseconds."""
    producer = Producer(client(bootstrap_servers) | {"linger.ms": 5})
    fed = []
    for offset, (draft, timestamp_ms) in enumerate(drafts):
        headers = [*draft.headers]
        producer.produce(topic, draft.value, draft.key, partition, headers=headers, timestamp=timestamp_ms)
        fed.append(Fed(topic, partition, offset, draft))
    producer.flush()
    return fed


def with_id(draft: Draft, id_: str) -> Draft:
    return draft._replace(headers=[*draft.headers, ("id", id_.encode())])


class Score(NamedTuple):
    """Scored predictions of a release, summed over windows."""

    correct: int
    total: int


def check_served(log: Log, fed: Sequence[Fed], sent: Sequence[Forecast], topic: str) -> Iterator[Violation]:
    """Check the windows against the predictions in the topic, all of which come before the labels of their ids.

    The log must have passed all records. A label counts if its record was used; the records in `fed` have a known fate.
    """
    positions = places(log.manifest["positions"])
    if positions.get((topic, 0)) != len(sent):
        yield Violation(f"{len(sent)} predictions were sent, but the position is {positions.get((topic, 0))}")
    expected, outcomes = _expected(fed, sent)
    counted: Counter[str] = Counter()
    scores: dict[int, Counter[str]] = defaultdict(Counter)
    waiting = 0
    for window in log.windows:
        served = window["served"]
        where = f"window {window['sequence']}"
        new = served["read"] - sum(served[name] for name in ("invalid", "without_id", "repeated"))
        gone = sum(served[name] for name in ("scored", "expired", "dropped"))
        if served["waiting"] != waiting + new - gone:
            yield Violation(f"{where} has {served['waiting']} waiting predictions, not {waiting + new - gone}")
        waiting = served["waiting"]
        start, end = places(window["spans"]).get((topic, 0), (0, 0))
        if served["read"] != end - start:
            yield Violation(f"{where} read {served['read']} predictions in {end - start} offsets")
        if served["scored"] != sum(release["accuracy"]["total"] for release in served["releases"]):
            yield Violation(f"{where} has other sums by release than {served['scored']}")
        for release in served["releases"]:
            by_class = release["accuracy"]["per_class"]
            for name in ("correct", "total"):
                if release["accuracy"][name] != sum(c[name] for c in by_class):
                    yield Violation(f"{where} has other sums by class of release {release['release']}")
                scores[release["release"]][name] += release["accuracy"][name]
        counted.update({name: served[name] for name in ("invalid", "without_id", "repeated", "scored")})
    found = {release: Score(counts["correct"], counts["total"]) for release, counts in scores.items()}
    for release in found.keys() | expected.keys():
        was, should = found.get(release, Score(0, 0)), expected.get(release, Score(0, 0))
        if was != should:
            more = was.total - should.total
            yield Violation(f"release {release}: {was}, not {should}", lost=max(0, -more), twice=max(0, more))
    if counted != outcomes:
        yield Violation(f"predictions had the outcomes {dict(counted)}, not {dict(outcomes)}")


def _expected(fed: Sequence[Fed], sent: Sequence[Forecast]) -> tuple[dict[int, Score], Counter[str]]:
    """Return the scores by release, and the number of predictions by outcome."""
    by_id: dict[str, dict[int, str]] = defaultdict(dict)
    outcomes: Counter[str] = Counter(invalid=0, without_id=0, repeated=0, scored=0)
    for one in sent:
        if outcome := TO_OUTCOME.get(one.id):
            outcomes[outcome] += 1
        elif one.release in by_id[one.id]:
            outcomes["repeated"] += 1
        else:
            by_id[one.id][one.release] = one.label
    expected: dict[int, Score] = {}
    for record in fed:
        headers = dict(record.draft.headers)
        if record.draft.fate not in (None, "train", "validation", "test"):
            continue
        for release, label in by_id.pop(headers.get("id", b"").decode(), {}).items():
            before = expected.get(release, Score(0, 0))
            expected[release] = Score(before.correct + (label == headers["label"].decode()), before.total + 1)
            outcomes["scored"] += 1
    return expected, outcomes
