"""A worker's figures as its metrics page tells them: what anybody could read."""

import math
import urllib.request
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Figures:
    """One scrape: every sample by name and labels."""

    samples: dict[tuple[str, tuple[tuple[str, str], ...]], float]

    def get(self, name: str, **labels: str) -> float:
        """A sample's value, NaN when it is not there (yet)."""
        return self.samples.get((f"stream_learner_{name}", tuple(sorted(labels.items()))), math.nan)

    def total(self, name: str, **labels: str) -> float:
        """Sum over the values of all other labels."""
        name = f"stream_learner_{name}"
        return sum(v for (n, values), v in self.samples.items() if n == name and labels.items() <= dict(values).items())

    def phase(self) -> str:
        """Return the worker's phase, as the health pages name it."""
        phases = [dict(labels)["phase"] for (n, labels), v in self.samples.items() if n == "stream_learner_phase" and v]
        return phases[0] if phases else "starting"

    def positions(self) -> dict[tuple[str, int], int]:
        """Next offset to learn per topic and partition, as far as any was learned."""
        found = {}
        for (name, labels), value in self.samples.items():
            if name == "stream_learner_position":
                where = dict(labels)
                found[where["topic"], int(where["partition"])] = int(value)
        return found


def scrape(port: int) -> Figures | None:
    """None while the page does not answer."""
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
