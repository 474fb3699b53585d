"""A worker's figures, read over HTTP from its metrics page."""

import math
import urllib.request
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Figures:
    """One scrape of the metrics page: the value of each Prometheus sample, by name and labels."""

    samples: dict[tuple[str, tuple[tuple[str, str], ...]], float]

    def get(self, name: str, **labels: str) -> float:
        """Return a sample's value, or NaN if the page does not have the sample."""
        return self.samples.get((f"stream_learner_{name}", tuple(sorted(labels.items()))), math.nan)

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of the samples with these labels, over all values of the other labels."""
        name = f"stream_learner_{name}"
        return sum(v for (n, values), v in self.samples.items() if n == name and labels.items() <= dict(values).items())

    def phase(self) -> str:
        """Return the worker's phase: a value of `monitoring.health.Phase`."""
        phases = [dict(labels)["phase"] for (n, labels), v in self.samples.items() if n == "stream_learner_phase" and v]
        return phases[0] if phases else "starting"

    def positions(self) -> dict[tuple[str, int], int]:
        """Return the next offset to learn of each partition; empty while the worker has not recovered."""
        found = {}
        for (name, labels), value in self.samples.items():
            if name == "stream_learner_position":
                where = dict(labels)
                found[where["topic"], int(where["partition"])] = int(value)
        return found


def scrape(port: int) -> Figures | None:
    """Scrape the metrics page. Return None while it does not answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=TIMEOUT_S) as answer:
            text = answer.read().decode()
    except OSError:
        return None
    return Figures(
        {
            (sample.name, tuple(sorted((k, v) for k, v in sample.labels.items() if k != "run"))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
    )
