"""Served predictions in memory: each is scored once, when a record with its id arrives."""

from collections import Counter
from typing import Any, cast

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_learner.config import MIB, ServedSettings, Settings
from stream_learner.contract.figures import Scored, ServedFigures
from stream_learner.contract.predictions import Prediction
from stream_learner.contract.vocabulary import Label
from stream_learner.contract.window import MAX_SERVED_RELEASES, ClassAccuracy, Distribution
from stream_learner.formats.record import Record, Sample
from stream_learner.learning.learned import Learned
from stream_learner.learning.parallel import Parallel
from stream_learner.publishing.served_tally import ServedTally
from stream_learner.run.arrivals import Arrival, with_predictions
from stream_learner.run.batch import Batch
from stream_learner.run.driver import Driver
from stream_learner.run.progress import Progress
from stream_learner.run.served import MAX_RELEASES_OF_ONE_ID, MAX_TOTALS, ROW, WAITING_BYTES, Served

NOW_MS = 1_700_000_000_000
KEEP_S = 3600.0


def arrival(id_: str | None, label: Label = "cat", release: int = 1, at_s: float = 0.0, epoch: int = 1) -> Arrival:
    prediction = Prediction(
        run_id="digits",
        epoch=epoch,
        release=release,
        id=id_,
        label=label,
        probabilities={str(label): 0.75},
        created_at="2025-01-01T00:00:00Z",
    )
    return Arrival(prediction, label, NOW_MS + int(at_s * 1000))


def sample(id_: str, label: Label = "cat", at_s: float = 60.0) -> Sample:
    return Sample(
        "images/0/0", label, np.zeros((1, 1, 1), np.uint8), timestamp_ms=NOW_MS + int(at_s * 1000), id=id_.encode()
    )


def new(**settings: Any) -> Served:
    return Served(ServedSettings.model_validate({"evaluate": True, "keep_s": KEEP_S} | settings))


def predict(served: Served, *arrivals: Arrival) -> ServedFigures:
    return served.evaluate([(0, arrival) for arrival in arrivals], [])


def label(served: Served, *samples: Sample) -> ServedFigures:
    return served.evaluate([], samples)


def resumed(served: Served, **settings: Any) -> Served:
    arrays, document = served.state_dict()
    other = new(**settings)
    other.load_state_dict(arrays, msgspec.json.decode(msgspec.json.encode(document)))
    return other


def test_a_label_scores_the_predictions_of_its_id_once() -> None:
    served = new()
    figures = predict(served, arrival("a"), arrival("a", "dog", release=2), arrival("b"), arrival(None))
    assert (figures.read, figures.outcomes, figures.waiting) == (4, {"without_id": 1}, 3)
    figures = label(served, sample("a", at_s=90), sample("a"), sample("unknown"))
    assert figures.scored == [(1, 1, "cat", True, 0.75, 90.0), (1, 2, "cat", False, 0.75, 90.0)]
    assert (figures.outcomes, figures.waiting) == ({"scored": 2}, 1)
    assert label(served, sample("a")).scored == []
    assert served.totals == {(1, 1): (1, 1), (1, 2): (0, 1)}


def test_a_prediction_counts_only_for_the_labels_that_are_read_after_it() -> None:
    served = new()
    batch = [(0, arrival("a")), (1, arrival("b")), (2, arrival("c")), (2, arrival("d"))]
    figures = served.evaluate(batch, [sample("a"), sample("c"), sample("b"), sample("d")], refused={3})
    assert [(scored.label, scored.correct) for scored in figures.scored] == [("cat", True)] * 2
    assert (figures.outcomes, figures.waiting) == ({"scored": 2}, 2)
    assert len(label(served, sample("c"), sample("d")).scored) == 2


def test_a_repeated_prediction_of_a_release_counts_once() -> None:
    served = new()
    assert predict(served, arrival("a"), arrival("a", "dog"), arrival("a", epoch=2)).outcomes == {"repeated": 1}
    assert [scored[:2] for scored in label(served, sample("a")).scored] == [(1, 1), (2, 1)]
    many = predict(served, *(arrival("a", release=1 + i) for i in range(MAX_RELEASES_OF_ONE_ID + 5)))
    assert (many.outcomes, many.waiting) == ({"dropped": 5}, MAX_RELEASES_OF_ONE_ID)


def test_labels_are_compared_with_their_type() -> None:
    served = new()
    predict(served, arrival("a", 7), arrival("b", "7"))
    assert [scored.correct for scored in label(served, sample("a", 7), sample("b", 7)).scored] == [True, False]


def test_a_prediction_expires_in_event_time() -> None:
    served = new()
    predict(served, arrival("a"), arrival("b", at_s=1), arrival("c", at_s=KEEP_S))
    assert label(served, sample("a", at_s=KEEP_S + 0.5)).outcomes == {"expired": 1}  # a later label is not compared
    later = [arrival(f"later-{i}", at_s=KEEP_S + 2) for i in range(10)]
    assert predict(served, *later).outcomes == {"expired": 1}
    assert label(served, sample("b")).scored == []
    assert len(label(served, sample("c", at_s=KEEP_S)).scored) == 1


def test_a_batch_of_predictions_alone_is_counted() -> None:
    class Idle:
        records = 0
        parallel = Parallel()

        def learn_shards(self, *_: Any) -> Learned:
            return Learned()

    served = new()
    driver = Driver(cast(Any, Idle()), Progress({}), served)
    batch = Batch(predictions=[(0, arrival("old")), *((0, arrival(str(i), at_s=2 * KEEP_S)) for i in range(9))])
    batch.cover("digits.predictions", 0, 0, 10)
    assert driver.learn(batch).served == ServedFigures(read=10, waiting=10)
    assert served.waiting == 10
    batch = Batch(predictions=[(0, arrival("new", at_s=2 * KEEP_S))])
    batch.cover("digits.predictions", 0, 10, 11)
    assert driver.learn(batch).served == ServedFigures(1, Counter(expired=1), [], 10)


def test_wrong_timestamps_expire_nothing_else() -> None:
    served = new()
    predict(served, *(arrival(f"usual-{i}") for i in range(10)))
    odd = Arrival(arrival("unknown").prediction, "cat", -1), arrival("future", at_s=10**9)
    assert predict(served, *odd).outcomes == {}
    assert predict(served).outcomes == {}
    figures = label(served, sample("unknown"), sample("future"), sample("usual-0")._replace(timestamp_ms=-1))
    assert [scored.delay_s for scored in figures.scored] == [60.0, 0.0, None]
    assert figures.waiting == 9


def test_the_oldest_predictions_are_dropped_when_the_memory_is_full() -> None:
    served, most = new(max_bytes=MIB), MIB // WAITING_BYTES
    figures = predict(served, *(arrival(str(i)) for i in range(most + 10)))
    assert (figures.outcomes, figures.waiting) == ({"dropped": 10}, most)
    assert label(served, *(sample(str(i)) for i in range(20))).outcomes == {"scored": 10}
    assert predict(served, arrival("a")).outcomes == {}


def test_a_smaller_memory_drops_predictions_of_the_state() -> None:
    served = new(max_bytes=2 * MIB)
    predict(served, *(arrival(str(i)) for i in range(MIB // WAITING_BYTES + 10)))
    figures = predict(resumed(served, max_bytes=MIB))
    assert (figures.outcomes, figures.waiting) == ({"dropped": 10}, MIB // WAITING_BYTES)


def test_totals_are_kept_for_the_releases_that_were_scored_last() -> None:
    served = new()
    for release in [*range(1, MAX_TOTALS + 1), 1, MAX_TOTALS + 1]:
        predict(served, arrival("a", release=release))
        label(served, sample("a"))
    assert [release for _, release in served.totals] == [*range(3, MAX_TOTALS + 1), 1, MAX_TOTALS + 1]
    assert served.totals[1, 1] == (2, 2)
    assert resumed(served).totals == served.totals


Step = tuple[str, int, int, int]


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.tuples(st.sampled_from("pl"), st.integers(0, 40), st.integers(1, 3), st.integers(0, 9000))))
)
def test_a_resumed_evaluation_equals_an_undisturbed_one(batches: list[list[Step]]) -> None:
    """Every prediction has one outcome, or waits."""
    undisturbed, restarted = new(), new()
    read, outcomes = 0, 0
    for batch in batches:
        arrivals, samples = [], []
        for kind, id_, release, at_s in batch:
            if kind == "p":
                arrivals.append((len(samples), arrival(str(id_), release=release, at_s=at_s)))
            else:
                samples.append(sample(str(id_), at_s=at_s))
        figures = undisturbed.evaluate(arrivals, samples)
        restarted = resumed(restarted)
        assert restarted.evaluate(arrivals, samples) == figures
        arrays, document = undisturbed.state_dict()
        assert arrays["predictions"].tobytes() == restarted.state_dict()[0]["predictions"].tobytes()
        assert document == restarted.state_dict()[1]
        read, outcomes = read + figures.read, outcomes + figures.outcomes.total()
        assert read == outcomes + figures.waiting == outcomes + len(arrays["predictions"])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"predictions": None}, "is not uint8"),
        ({"predictions": np.zeros((1, ROW.itemsize - 1), np.uint8)}, "is not uint8"),
        ({"predictions": np.zeros((1, ROW.itemsize), np.float32)}, "is not uint8"),
        ({"epoch": 0}, "wrong epoch"),
        ({"epoch": 2**40}, "wrong epoch"),
        ({"release": 0}, "wrong release"),
        ({"timestamp_ms": -1}, "wrong timestamp_ms"),
        ({"timestamp_ms": 2**60}, "wrong timestamp_ms"),
        ({"probability": np.nan}, "wrong probability"),
        ({"probability": 1.5}, "wrong probability"),
        ({"clock": [0]}, "Expected `int` >= "),
        ({"totals": [[1, 1, 1]]}, "totals"),
        ({"totals": [[1, 1, 2, 1]]}, "more correct"),
        ({"totals": [[1, 1, 1, 1]] * (MAX_TOTALS + 1)}, "totals"),
    ],
)
def test_a_damaged_state_is_refused(change: dict[str, Any], why: str) -> None:
    served = new()
    predict(served, arrival("a"))
    arrays, document = served.state_dict()
    rows = arrays["predictions"].view(ROW).reshape(-1)
    for name, value in change.items():
        if name in document:
            document[name] = value
        elif name == "predictions":
            arrays = {} if value is None else {name: value}
        else:
            rows[name] = value
    with pytest.raises(ValueError, match=why):
        new().load_state_dict(arrays, document)


def test_records_of_the_predictions_topic_are_read_and_others_decoded() -> None:
    document = {"run": {"id": "digits"}, "input": {"topics": ["images"]}, "labels": {"aliases": {"kitty": "cat"}}}
    off = Settings.model_validate(document)
    on = Settings.model_validate(document | {"served": {"evaluate": True}})
    decoded = sample("a")

    def decode(_: Record) -> Sample:
        return decoded

    assert with_predictions(off, decode) is decode
    read = with_predictions(on, decode)
    kitty = arrival("a", "kitty").prediction
    assert kitty
    assert read(Record("images", 0, 0, 5, None, b"", [])) is decoded
    assert read(Record("digits.predictions", 0, 0, 5, b"a", kitty.encode(), [])) == Arrival(kitty, "cat", 5)
    others = msgspec.structs.replace(kitty, run_id="another").encode(), kitty.encode()[:-1], None
    for value in others:
        assert read(Record("digits.predictions", 0, 0, 5, b"a", value, [])) == Arrival(None, "", 5)


def test_a_window_has_the_figures_of_each_release() -> None:
    tally, served = ServedTally(), new()
    for release, ids in ((1, "ab"), (2, "abcd")):
        predictions = (arrival(id_, "cat" if id_ != "b" else "dog", release) for id_ in ids)
        tally.add(predict(served, *predictions, arrival(None)))
    tally.add(label(served, *(sample(id_, at_s=at_s) for id_, at_s in zip("abc", (30, 60, 90), strict=True))))
    window = tally.window()
    assert (window.read, window.without_id, window.scored, window.waiting) == (8, 2, 5, 1)
    assert [(release.epoch, release.release) for release in window.releases] == [(1, 2), (1, 1)]
    second, first = window.releases
    assert (second.accuracy.correct, second.accuracy.total, second.probability) == (2, 3, 0.75)
    assert second.delay_s == Distribution(3, 60.0, 30.0, 90.0)
    assert first.accuracy.per_class == [ClassAccuracy("cat", 1, 2)]
    many = ServedFigures(scored=[Scored(1, 1 + i, "cat", True, 0.5, None) for i in range(MAX_SERVED_RELEASES + 5)])
    tally.add(many)
    assert [release.release for release in tally.window().releases] == [2, 1, *range(MAX_SERVED_RELEASES + 5, 7, -1)]
    assert tally.window().releases[-1].delay_s is None
