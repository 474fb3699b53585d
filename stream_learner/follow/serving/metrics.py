"""Prometheus metrics of a server."""

import math
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from stream_learner.follow.follower import Follower

NAMESPACE = "stream_learner_serving"
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class ServingMetrics:
    """Requests, predictions and the follower's state."""

    def __init__(self, registry: CollectorRegistry, follower: Follower):
        self._seconds = Histogram(
            "request_seconds",
            "Time from a request for predictions to its answer, in seconds.",
            namespace=NAMESPACE,
            registry=registry,
            buckets=BUCKETS_S,
        )
        self._requests = Counter(
            "requests_total",
            "Requests for predictions, by the HTTP status of the answer, in requests.",
            ("status",),
            namespace=NAMESPACE,
            registry=registry,
        )
        self._images = Counter("images_total", "Images predicted, in images.", namespace=NAMESPACE, registry=registry)
        gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "release": ("Sequence of the release in use, NaN before the first.", lambda: _sequence(follower)),
            "release_age_seconds": ("Time since the release in use was made, in seconds.", lambda: _age_s(follower)),
            "kafka_silence_seconds": (
                "Time since the brokers last answered, in seconds.",
                lambda: follower.following.silence_s,
            ),
            "release_refused": (
                "1 while a newer release is known but not in use, because it could not be read or verified.",
                lambda: follower.following.refused is not None,
            ),
        }
        for name, (help_text, function) in gauges.items():
            Gauge(name, help_text, namespace=NAMESPACE, registry=registry).set_function(function)

    def answered(self, status: int, images: int, seconds: float) -> None:
        """Count a request for predictions, and the images that were predicted for it."""
        self._requests.labels(status).inc()
        self._images.inc(images)
        self._seconds.observe(seconds)


def _sequence(follower: Follower) -> float:
    release = follower.following.release
    return release.described.sequence if release else math.nan


def _age_s(follower: Follower) -> float:
    age_s = follower.following.age_s
    return math.nan if age_s is None else age_s
