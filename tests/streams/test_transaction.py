"""Transactions on the real broker, beside a second producer with the same transactional id."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from stream_learner.config import Settings
from stream_learner.contract.spans import RowPositions
from stream_learner.errors import FencedError
from stream_learner.streams.offsets import mirrored_positions
from stream_learner.streams.transaction import Transaction

DEADLINE_S = 60.0


@pytest.fixture
def new_transaction(new_settings: Callable[..., Settings]) -> Iterator[Callable[[], Transaction]]:
    """Return a function that opens a producer with the test's transactional id and fences the ones before it."""
    settings = new_settings()
    with ExitStack() as opened:

        def new_transaction() -> Transaction:
            transaction = Transaction(settings)
            opened.callback(transaction._producer.close, 0)
            transaction.fence()
            return transaction

        yield new_transaction


def write(transaction: Transaction, topic: str) -> None:
    transaction.confirm([transaction.send(topic, b"value", b"key")], time.monotonic() + DEADLINE_S)


def test_a_fenced_producer_stays_fenced(new_transaction: Callable[[], Transaction], new_topic: Callable[..., str]):
    """When the brokers refuse a record because of its epoch, it does not ask them for the next epoch."""
    topic = new_topic()
    fenced = new_transaction()
    fenced.begin()
    write(fenced, topic)
    new = new_transaction()
    for action in (lambda: write(fenced, topic), lambda: write(fenced, topic), fenced.commit, fenced.begin):
        with pytest.raises(FencedError):
            action()
    new.begin()
    write(new, topic)
    new.commit()


def test_the_mirrored_positions_have_the_rows_that_were_read(
    new_transaction: Callable[[], Transaction], new_topic: Callable[..., str], new_settings: Callable[..., Settings]
):
    topic = new_topic(partitions=2)
    positions: RowPositions = {topic: {0: (5, 0), 1: (7, 9000)}}
    transaction = new_transaction()
    transaction.begin()
    transaction.offsets(positions)
    transaction.commit()
    assert mirrored_positions(new_settings()) == positions
