"""Series that a real worker exposes to Prometheus, from its first turn."""

from feed import mixed
from harness import NewRun, Worker
from prometheus_client.parser import text_string_to_metric_families

# Series that begin with a class, or with the first fetch of a partition.
LATER = {
    f"stream_learner_{name}" for name in ("memory_items", "class_accuracy", "forgetting", "lag_records", "lag_seconds")
}
LATER.add("stream_learner_log_start")


def series(worker: Worker) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(worker.page("metrics")[1])
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def test_every_series_is_there_before_its_first_event_and_names_its_run(new_run: NewRun) -> None:
    run = new_run(2, release__every_records=300, input__on_lost="continue")
    worker = run.start()
    worker.learning()
    before = series(worker)
    run.feed(mixed(1000))
    run.learned(worker)
    worker.reaches("releases_total", 1)
    for name in ("log_start", "lag_seconds", "class_accuracy"):  # set once a second
        worker.until(name, lambda name=name: worker.metric(name))
    after = series(worker)
    new = {name for name, _ in after.keys() - before.keys()}
    assert new <= LATER, new - LATER
    assert "stream_learner_class_accuracy" in new  # the others may have been there before
    assert all(("run", run.id) in labels for _, labels in after)
    for partition in ("0", "1"):
        place = {("run", run.id), ("topic", run.input), ("partition", partition)}
        assert before["stream_learner_records_lost_total", frozenset(place)] == 0
    counted = {key: value for key, value in before.items() if key[0].startswith("stream_learner_")}
    assert {value for (name, _), value in counted.items() if name.endswith("_total")} == {0}
