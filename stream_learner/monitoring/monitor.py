"""Health and metrics of a worker, which operators watch."""

from stream_learner.contract.manifest import Manifest
from stream_learner.monitoring.health import Answer, Health
from stream_learner.monitoring.metrics import Metrics


class Monitor:
    """The health and the metrics of a worker. The metrics follow the health."""

    def __init__(self, health: Health, metrics: Metrics):
        self.health = health
        self.metrics = metrics
        metrics.follow(health)

    def committed(self, manifest: Manifest, seconds: float) -> None:
        """Show a checkpoint that took `seconds` from snapshot to commit. The commit is an answer of the brokers."""
        self.health.heard(Answer.COMMIT)
        self.metrics.checkpoint_committed(manifest, seconds)
