"""The thread that publishes: what it tries again, and what ends the process."""

import threading

import pytest
from fake_run import FakeRun, rejection
from fakes import TOPIC

from stream_learner.contract.manifest import Manifest
from stream_learner.errors import ExitCode, FencedError, KafkaUnavailableError, PublishError, StoreError
from stream_learner.publishing import background_publisher
from stream_learner.publishing.background_publisher import BackgroundPublisher


class Published:
    """A run that publishes in the background, and what its publisher reported."""

    def __init__(self):
        self.run = FakeRun()
        self.committed: list[Manifest] = []
        self.store_failures = 0
        self.ended: list[ExitCode] = []
        self.publisher = BackgroundPublisher(
            self.run.settings,
            self.run.writer(),
            lambda manifest, _: self.committed.append(manifest),
            self.store_failed,
            self.ended.append,
        )

    def store_failed(self) -> None:
        self.store_failures += 1

    def publish(self) -> None:
        self.publisher.submit(self.run.snapshot(letters=[rejection(0)]), {TOPIC: {0: 0}})
        self.publisher.wait(lambda: None)
        assert self.publisher.idle


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Published:
    monkeypatch.setattr(background_publisher, "BACKOFF_S", (0.0,))
    return Published()


def test_objects_are_tried_again_until_they_are_written(published: Published) -> None:
    published.run.effects.fail("put state.safetensors", StoreError("no room"), call=1)
    published.run.effects.fail("put state.safetensors", KafkaUnavailableError("no broker"), call=2)
    published.publish()
    assert [manifest.sequence for manifest in published.committed] == [1]
    assert published.store_failures == 1  # Kafka's failures are not the store's
    assert published.ended == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PublishError("a record timed out"), ExitCode.PUBLISH),
        (FencedError("another worker took over"), ExitCode.FENCED),
        (KafkaUnavailableError("no rights"), ExitCode.KAFKA),
        (RuntimeError("a bug"), ExitCode.INTERNAL),
        (MemoryError(), ExitCode.MEMORY),
    ],
)
def test_an_error_inside_the_transaction_ends_the_process_and_is_not_tried_again(
    published: Published, error: Exception, code: ExitCode
) -> None:
    published.run.effects.fail("send checkpoints", error)
    published.publish()
    assert published.ended == [code]
    assert published.committed == []
    assert published.run.effects.names.count("begin") == 1


def test_an_input_that_was_created_again_ends_the_process(published: Published) -> None:
    published.run.cluster.create_again(TOPIC)
    published.publish()
    assert published.ended == [ExitCode.INPUT]


def test_a_commit_that_does_not_return_ends_the_process(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    ended, may_return = threading.Event(), threading.Event()
    monkeypatch.setattr(background_publisher, "WATCHDOG_MARGIN_S", -published.run.settings.transaction_timeout_s)
    monkeypatch.setattr(published.publisher, "_end_process", lambda code: (published.ended.append(code), ended.set()))
    monkeypatch.setattr(published.run.transaction, "commit", may_return.wait)
    published.publisher.submit(published.run.snapshot(), {})
    assert ended.wait(60)
    assert published.ended[0] == ExitCode.WATCHDOG
    assert not published.publisher.idle
    may_return.set()


def test_cleaning_that_fails_does_not_end_the_process(published: Published) -> None:
    published.run.effects.fail("put run.json", StoreError("no room"))
    published.publish()
    published.publish()
    assert [manifest.sequence for manifest in published.committed] == [1, 2]
    assert published.ended == []
