"""Periodic work during learning: heartbeats, the election, and the gauges."""

import time
from typing import Protocol

import structlog

from stream_learner.config import KafkaSettings
from stream_learner.contract.event_time import age_s
from stream_learner.contract.spans import Positions
from stream_learner.errors import FencedError, KafkaUnavailableError
from stream_learner.monitoring.health import Health
from stream_learner.monitoring.monitor import Monitor
from stream_learner.monitoring.report import Report
from stream_learner.run.driver import Driver
from stream_learner.run.inputs import Inputs

log = structlog.get_logger()

TEND_EVERY_S = 1.0


class Election(Protocol):
    """The methods of `stream_learner.streams.election.Election` that are used here."""

    @property
    def elected(self) -> bool | None: ...
    def poll(self) -> None: ...


class Led:
    """The election for a rank other than 0, which follows rank 0."""

    elected = True

    def poll(self) -> None: ...


class Upkeep:
    """Keeps an active worker alive, elected and visible."""

    def __init__(self, kafka: KafkaSettings, driver: Driver, inputs: Inputs, election: Election, monitor: Monitor):
        self.monitor = monitor
        self._kafka = kafka
        self._driver = driver
        self._inputs = inputs
        self._election = election
        self.tended_at = 0.0
        # Hundreds of partitions may be idle, so their gauges are updated only when somebody reads them.
        monitor.metrics.update_with(self._show_partitions)

    def tend(self, unsaved_records: int) -> None:
        """Send a heartbeat. Once a second, also poll the election and update the gauges.

        Call this in each iteration of the loop. `unsaved_records` is the number of learned input records that are in no
        committed checkpoint. Raises FencedError, KafkaUnavailableError.
        """
        health = self.monitor.health
        health.beat()
        if time.monotonic() < self.tended_at + TEND_EVERY_S:
            return
        self.tended_at = time.monotonic()
        health.unanswered = self._inputs.unanswered
        give_up(self._kafka, health)
        self._election.poll()
        if not self._election.elected:
            raise FencedError(
                "another worker was elected: the brokers considered this worker dead, or it was replaced on purpose "
                "(run.on_conflict = take_over). Nothing more is published; restart to stand by or to recover"
            )
        self._show(unsaved_records)

    def _show_partitions(self) -> None:
        """Update the gauges of the partitions. Called at each scrape, on the thread of the monitoring port."""
        metrics, now_s = self.monitor.metrics, time.time()
        for topic, partitions in self.lag().items():
            for partition, records in partitions.items():
                seconds = age_s(self._inputs.oldest_ms(topic, partition), now_s) if records else 0.0
                metrics.observe_lag(topic, partition, records, seconds)
        for topic, partitions in self._inputs.starts().items():
            for partition, offset in partitions.items():
                metrics.observe_log_start(topic, partition, offset)

    def _show(self, unsaved_records: int) -> None:
        metrics = self.monitor.metrics
        gauges = self._driver.learner.gauges()
        metrics.observe_memory(gauges.remembered, gauges.memory_bytes)
        if self._driver.learner.parallel.rank == 0:  # the same on all ranks
            metrics.observe_recent(gauges.recent, gauges.drift_window, gauges.boosted)
            metrics.observe_refused(gauges.refused)
        if self._driver.served:
            metrics.observe_served(self._driver.served.waiting, self._driver.served.totals)
        metrics.observe_unsaved(unsaved_records)

    def learned(self, report: Report) -> None:
        """Update the metrics with a learned batch, and log its drifts."""
        self.monitor.metrics.observe(report)
        for drift in report.drifts:
            before, after = (round(error, 3) for error in (drift.error_before, drift.error_after))
            log.warning("drift: the prequential error rose", before=before, after=after, records=drift.records)

    def lag(self) -> Positions:
        """Return the number of messages between the learned position and the end of each partition."""
        positions = self._driver.progress.positions
        return {
            topic: {p: max(0, end - positions.get(topic, {}).get(p, 0)) for p, end in partitions.items()}
            for topic, partitions in self._inputs.ends().items()
        }


def give_up(kafka: KafkaSettings, health: Health) -> None:
    """Raise KafkaUnavailableError when the brokers have not answered for `kafka.give_up_s`."""
    if health.cut_off_s > kafka.give_up_s:
        raise KafkaUnavailableError(
            f"Kafka at {kafka.bootstrap_servers} has not answered for kafka.give_up_s = {kafka.give_up_s:g} s. Nothing "
            "is lost: check that the brokers are up, then restart to resume from the last committed checkpoint"
        )
