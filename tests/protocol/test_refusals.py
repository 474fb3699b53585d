"""States and topics from which a worker refuses to continue, without changing anything."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from checker import ERRORS, check
from confluent_kafka import Producer
from feed import Draft, client, digits, feed, good, mixed, send
from harness import NewRun, Run
from outputs import Log, places

from stream_learner.errors import ExitCode
from stream_learner.streams import topics


def test_missing_topics(new_run: NewRun) -> None:
    run = new_run()
    run.overrides["topics.prefix"] = "nowhere"
    assert "topics nowhere.checkpoints, nowhere.history" in run.start().ends(ExitCode.TOPICS)


def test_a_starter_that_does_not_fit_fences_nobody(new_run: NewRun) -> None:
    run = new_run()
    run.feed(mixed(250))
    worker = run.start()
    worker.reaches("checkpoint_sequence", 1)
    run.overrides["model.height"] = 9
    assert "its model.height is" in run.start().ends(ExitCode.STATE)
    fewer = run.start("--set", "model.height=8", "--set", "model.max_classes=9")
    assert "it has 10 classes, more than model.max_classes = 9" in fewer.ends(ExitCode.STATE)
    run.feed(mixed(250))
    run.finish(worker)


def test_a_lost_manifest(new_run: NewRun) -> None:
    run = new_run(release__every_records=400)
    run.feed(mixed(500))
    lost = len(run.finish(run.start()).history)
    run.delete_topic(f"{run.id}.checkpoints")
    topics.create(run.settings)
    assert "deleted and created again" in run.start().ends(ExitCode.STATE)
    (run.store / run.id / "run.json").unlink()
    assert "run --fresh" in run.start().ends(ExitCode.STATE)
    worker = run.start("--fresh")
    run.learned(worker)
    worker.stop()
    log = run.published()
    first, *_, newest = log.manifests[lost:]
    assert (first["epoch"], first["sequence"], first["predecessor"]) == (2, 1, None)
    assert [window["epoch"] for window in log.windows] == lost * [1] + newest["sequence"] * [2]
    worker = run.start()
    worker.learning()
    assert f'"epoch":2,"sequence":{newest["sequence"]}' in worker.text()
    worker.stop()
    for topic in ("checkpoints", "history"):  # the metrics topic and the store are left
        run.delete_topic(f"{run.id}.{topic}")
    topics.create(run.settings)
    worker = run.start("--fresh")
    run.learned(worker)
    worker.stop()
    log = run.published()
    assert {manifest["epoch"] for manifest in log.manifests} == {3}
    assert [(window["epoch"], window["sequence"]) for window in log.windows][-1] == (3, log.manifest["sequence"])


def test_an_input_that_is_left_out(finished: tuple[Run, Log], new_run: NewRun) -> None:
    run, log = finished
    text = run.start("--set", f'input.topics=["{new_run().input}"]').ends(ExitCode.INPUT)
    assert f"learned from topic {run.input}, which is not in input.topics" in text
    assert run.check() == log


def test_a_transaction_longer_than_the_brokers_allow(new_run: NewRun) -> None:
    text = new_run(checkpoint__timeout_s=900.0).start().ends(ExitCode.USAGE)
    assert "the brokers refuse transactions of 972 s, which exceeds their transaction.max.timeout.ms" in text
    assert "checkpoint.timeout_s, and one second for each MiB of checkpoint.max_pending_bytes" in text


def test_an_input_that_was_made_anew(new_run: NewRun) -> None:
    run = new_run()
    run.feed(mixed(250))
    run.finish(run.start())
    run.delete_topic(run.input)
    run.create_input()
    run.feed(mixed(250))
    assert "was deleted and created again" in run.start().ends(ExitCode.INPUT)


def test_an_input_that_is_made_anew_under_a_worker(new_run: NewRun) -> None:
    run = new_run()
    run.feed(mixed(250))
    worker = run.start()
    run.learned(worker)
    worker.signal(signal.SIGSTOP)  # a save without the topic would end with another code
    worker.paused()
    run.delete_topic(run.input)
    run.create_input()
    feed(run.broker.bootstrap_servers, run.input, good(500))  # past the position: other records at known offsets
    worker.signal(signal.SIGCONT)
    worker.ends(ExitCode.INPUT)
    log = run.published()
    log.group.update(
        {place: (offset, 0) for place, offset in places(log.manifest["positions"]).items()}
    )  # brokers forget those of a deleted topic, some time
    check(log, run.fed)


def test_records_that_fell_off_retention(new_run: NewRun) -> None:
    run = new_run()
    run.feed(mixed(250))
    run.finish(run.start())
    run.feed(mixed(250))
    run.delete(0, 375)
    assert "deleted by retention" in run.start().ends(ExitCode.INPUT)
    run.lose(0, 375)
    run.overrides["input.on_lost"] = "continue"
    run.finish(run.start())


def test_a_worker_goes_on_behind_records_that_fall_off_retention(new_run: NewRun) -> None:
    run = new_run(partitions=2, input__on_lost="continue", checkpoint__every_records=1000)
    run.feed(mixed(1000))
    worker = run.start()
    worker.until("its save", lambda: run.saved() == run.ends())
    worker.signal(signal.SIGSTOP)
    drafts = list(mixed(2000))
    run.feed(drafts[:2])  # the answer to what it has asked already, lest that be all of them
    run.feed(drafts[2:])
    run.delete(1, 900)
    worker.signal(signal.SIGCONT)
    run.learned(worker)
    worker.stop()
    (lost,) = [window["lost"] for window in run.published().windows if window["lost"]]
    ((start, end),) = lost[run.input]["1"]
    assert 500 <= start < end == 900  # some may have been on their way already
    run.lost(1, start, end)
    run.check()


@contextmanager
def unwritable(run: Run) -> Iterator[None]:
    """Put a file in the place of the run's folder. Permissions would not stop a test that runs as root."""
    folder = run.store / run.id
    aside = folder.rename(run.folder / "aside")
    folder.touch()
    yield
    folder.unlink()
    aside.rename(folder)


def test_a_store_that_cannot_be_written_for_a_while(new_run: NewRun) -> None:
    run = new_run(checkpoint__max_unsaved_records=600, release__every_records=10_000)
    run.feed(mixed(300))
    worker = run.start()
    worker.reaches("checkpoint_sequence", 1)
    with unwritable(run):
        run.feed(mixed(300))
        worker.reaches("store_failures_total", 1)
        run.learned(worker)  # training continues
        run.feed(mixed(2000))
        worker.reaches("store_failures_total", 3)
        reached = sum(worker.metric("position").values())
        assert 0 < reached < sum(run.saved().values()) + 600 + 100  # but only so far
    run.finish(worker)


def test_a_stop_that_cannot_save(new_run: NewRun) -> None:
    run = new_run(run__stop_deadline_s=1.0)
    run.feed(mixed(300))
    worker = run.start()
    worker.reaches("checkpoint_sequence", 1)
    with unwritable(run):
        run.feed(mixed(300))
        run.learned(worker)
        worker.signal(signal.SIGTERM)
        worker.ends(ExitCode.WATCHDOG)
    run.finish(run.start("--set", "run.stop_deadline_s=60"))


def test_too_many_rejects(new_run: NewRun) -> None:
    run = new_run(rejects__max_share=0.02, rejects__window=200)
    run.feed(mixed(2000))
    run.start().ends(ExitCode.REJECTS)
    first = run.check()
    run.start().ends(ExitCode.REJECTS)
    assert len(run.check().dead_letters) > len(first.dead_letters)
    run.finish(run.start("--accept-rejects"))


def test_rejects_in_a_row(new_run: NewRun) -> None:
    """Few records are enough, whatever surrounds them. The message names topic and reasons."""
    run = new_run(checkpoint__every_records=10_000, checkpoint__every_s=3600.0)
    unlabelled = [Draft(None, digits()[0][0], [], "no_label")] * 200
    run.feed([*good(100), *unlabelled, *good(40)])
    log = run.start().ends(ExitCode.REJECTS)
    assert f"200 records in a row were rejected (rejects.max_in_a_row = 200): {run.input}: no_label 200" in log
    assert f'"rejected":200,"rejects":"{run.input}: no_label 200"' in log
    assert f"rejected: {run.input}: no_label 200" in run.call("status").ends(ExitCode.OK)
    worker = run.start()
    run.feed(good(40))
    assert run.finish(worker).windows[0]["rejected_by_topic"] == {run.input: {"no_label": 200}}


def test_a_model_that_diverges(new_run: NewRun) -> None:
    run = new_run(learning__optimizer="sgd", learning__learning_rate=1e30)
    run.feed(good(1000))
    passed: set[int] = set()
    for _ in range(2):  # a restart continues behind the record that stopped the start before
        assert "not finite" in run.start().ends(ExitCode.DIVERGED)
        origins = {int(dict(letter.headers)[ERRORS + "offset"]) for letter in run.published().dead_letters}
        assert origins > passed
        for i in origins - passed:
            run.fed[i] = run.fed[i]._replace(draft=run.fed[i].draft._replace(fate="non_finite_step"))
        run.check()
        passed = origins


def test_control_records_leave_no_lag(new_run: NewRun) -> None:
    run = new_run()
    producer = Producer(client(run.broker.bootstrap_servers) | {"transactional.id": run.id})
    producer.init_transactions()
    for end in (producer.commit_transaction, producer.abort_transaction) * 2:
        producer.begin_transaction()
        fed = send(producer, run.input, mixed(400))
        producer.flush()
        end()
        if end == producer.commit_transaction:
            run.fed += fed
    worker = run.start()
    worker.until("no lag", lambda: list(worker.metric("lag_records").values()) == [0])
    worker.stop()
    log = run.check()
    assert log.windows[-1]["lag"] == {run.input: {"0": 0}}
    assert run.saved() == {(run.input, 0): 4 * 401}
