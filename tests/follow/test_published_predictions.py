"""Predictions that are published, on the real broker: bursts, and a Kafka that confirms nothing."""

import asyncio
import signal
from collections.abc import Callable

import numpy as np
import pytest
from prometheus_client import Counter
from released import CLASSES, release

from stream_learner.config import FollowSettings, Settings
from stream_learner.contract.topics import Names
from stream_learner.follow.serving import publishing
from stream_learner.follow.serving.publishing import MAX_PENDING, Publisher
from stream_learner.local.broker import Broker
from stream_learner.streams import offsets, topics

IMAGES = 1000
DEADLINE_S = 120.0


def follow(settings: Settings) -> FollowSettings:
    serve = {"publish_share": 1.0, "timeout_s": 10 * DEADLINE_S}
    return FollowSettings.model_validate({"run": settings.run, "kafka": settings.kafka, "serve": serve})


def predict(publisher: Publisher, requests: int) -> None:
    """Offer the predictions of requests that arrive at the same time."""
    probabilities = np.full((IMAGES, CLASSES), 1 / CLASSES, np.float32)

    async def offer_all() -> None:
        offers = (publisher.offer(release(1), [None] * IMAGES, probabilities) for _ in range(requests))
        await asyncio.wait_for(asyncio.gather(*offers), DEADLINE_S)

    asyncio.run(offer_all())


def counts(publisher: Publisher) -> tuple[float, float]:
    """Return how many predictions were published, and how many are lost."""
    published, lost = (value_of(counter) for counter in publisher.counters)
    return published, lost


def value_of(counter: Counter) -> float:
    return next(iter(counter.collect())).samples[0].value


def test_a_burst_is_published_without_loss(new_settings: Callable[..., Settings]) -> None:
    settings = new_settings()
    topics.create(settings)
    requests = MAX_PENDING // IMAGES + 2
    with Publisher(follow(settings)) as publisher:
        predict(publisher, requests)
    assert counts(publisher) == (requests * IMAGES, 0)
    topic = Names.under(settings.prefix).predictions
    assert offsets.bounds(settings.kafka, [topic])[1][topic] == {0: requests * IMAGES}


def test_requests_do_not_wait_for_a_kafka_that_confirms_nothing(
    new_settings: Callable[..., Settings], broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "MAX_PENDING", IMAGES)
    settings = new_settings()
    topics.create(settings)
    assert broker._process
    with Publisher(follow(settings)) as publisher:
        broker._process.send_signal(signal.SIGSTOP)
        try:
            predict(publisher, 3)
        finally:
            broker._process.send_signal(signal.SIGCONT)
        assert counts(publisher) == (0, 2 * IMAGES)
    assert counts(publisher) == (IMAGES, 2 * IMAGES)
