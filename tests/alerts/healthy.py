"""A healthy run: restarts, kills with a standby, and roll-backs must fire no alert."""

import time
from collections import Counter
from contextlib import closing
from itertools import cycle
from typing import Any

from faults import PACE, Feeder, Stage, endless, mislabelled
from harness import Run, Worker

from stream_learner.local.broker import free_port

EVENT_EVERY_S = 600.0
SETTINGS: dict[str, Any] = {
    "run__on_conflict": "standby",
    # Without a memory, so that wrong labels soon make it go back to a release.
    "learning__strategy": "finetune",
    "learning__average_decay": 0.9,
    "release__every_records": 1000,
    "release__patience": 2,
}


class Pair:
    """An active worker and its standby, each at a port of its own."""

    def __init__(self, stage: Stage, run: Run):
        self._run = run
        self._ports = [free_port(), free_port()]
        self._workers: list[Worker] = []
        for port in self._ports:
            stage.prometheus.scrape(port)
            self._workers.append(self._start(port))
            self._workers[0].learning()

    def active(self) -> Worker:
        return self._in_phase("learning")

    def standby(self) -> Worker:
        return self._in_phase("standby")

    def replace(self, worker: Worker) -> None:
        """Start a worker again that has ended."""
        i = self._workers.index(worker)
        self._workers[i] = self._start(self._ports[i])

    def _start(self, port: int) -> Worker:
        return self._run.start("--set", f"monitoring.port={port}")

    def _in_phase(self, phase: str) -> Worker:
        def found() -> list[Worker]:
            return [worker for worker in self._workers if worker.metric("phase").get(f'{{phase="{phase}"}}')]

        return self._workers[0].until(phase, found)[0]


def stay_well(stage: Stage, minutes: float) -> Counter[str]:
    """Disturb a run every ten minutes (divided by the stage's factor). Return the disturbances."""
    happened: Counter[str] = Counter()
    began = time.monotonic()
    events = cycle(("restart", "roll-back", "kill", "standby restarted"))
    with stage.run("healthy", **SETTINGS) as run, closing(Feeder(run, endless())) as feeder:
        pair = Pair(stage, run)
        stage.well(run, pair.active(), 20 * PACE)
        next_at = time.monotonic() + EVENT_EVERY_S / stage.factor / 2
        while (now := time.monotonic()) < began + 60 * minutes:
            if now >= next_at:
                next_at += EVENT_EVERY_S / stage.factor
                event = next(events)
                if event == "roll-back":
                    feeder.drafts = mislabelled(endless())
                    pair.active().reaches("records_discarded_total", 1)
                    feeder.drafts = endless()
                else:
                    worker = pair.standby() if event == "standby restarted" else pair.active()
                    worker.kill() if event == "kill" else worker.stop()
                    pair.replace(worker)
                happened[event] += 1
            time.sleep(1)
            assert not stage.prometheus.fired(), stage.prometheus.fired()
    return happened
