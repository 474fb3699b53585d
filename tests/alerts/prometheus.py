"""A real Prometheus with the rules of deploy/alerts.yml, whose times may be shortened."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

from ruamel.yaml import YAML

from stream_learner.local.broker import free_port

RULES = Path(__file__).parents[2] / "deploy" / "alerts.yml"
SCRAPE_S = 5.0  # that of deploy/prometheus.yml
LEAST_SCRAPE_S = 0.5
DEADLINE_S = 60.0
UNITS_S = {"m": 60, "h": 60 * 60, "d": 24 * 60 * 60}


def shortened(rules: dict[str, Any], factor: float) -> dict[str, Any]:
    """Divide every time in the rules by `factor`: ranges, `for`, and thresholds that are written `N * 60`. Nothing else
    differs from the rules that are shipped."""

    def duration(found: re.Match[str]) -> str:
        return f"{int(found[1]) * UNITS_S[found[2]] * 1000 / factor:.0f}ms"

    for group in rules["groups"]:
        for rule in group["rules"]:
            for name in {"expr", "for"} & rule.keys():
                rule[name] = re.sub(r"\b(\d+)([mhd])\b", duration, rule[name])
            rule["expr"] = rule["expr"].replace("* 60", f"* {60 / factor:g}")
    return rules


class Prometheus:
    """A Prometheus that scrapes workers on this machine, as a context manager.

    `factor` shortens the rules and the scrape interval.
    """

    def __init__(self, folder: Path, factor: float):
        self._folder = folder
        self._port = free_port()
        self._targets: set[str] = set()
        folder.mkdir()
        every = f"{max(LEAST_SCRAPE_S, SCRAPE_S / factor) * 1000:.0f}ms"
        yaml = YAML(typ="safe")
        yaml.dump(shortened(yaml.load(RULES), factor), folder / "alerts.yml")
        config = {
            "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
            "rule_files": ["alerts.yml"],
            "scrape_configs": [
                {
                    "job_name": "stream-learner",
                    "file_sd_configs": [{"files": ["targets.json"], "refresh_interval": "1s"}],
                }
            ],
        }
        yaml.dump(config, folder / "prometheus.yml")
        self._write_targets()

    def __enter__(self) -> "Prometheus":
        program = Path(sys.executable).with_name("prometheus")
        assert program.exists(), f"{program} is missing; `make test` puts it there, from Debian's package prometheus"
        with (self._folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    program,
                    "--config.file=prometheus.yml",
                    "--storage.tsdb.path=data",
                    f"--web.listen-address=127.0.0.1:{self._port}",
                    "--log.level=warn",
                ],
                cwd=self._folder,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + DEADLINE_S
        while not self._answers():
            assert time.monotonic() < deadline, (self._folder / "prometheus.log").read_text()
            time.sleep(0.1)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(DEADLINE_S)

    def scrape(self, port: int) -> None:
        """Add a worker's port to the targets."""
        self._targets.add(f"127.0.0.1:{port}")
        self._write_targets()

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series of an instant query."""
        with urlopen(self._url("api/v1/query?" + urlencode({"query": expression})), timeout=DEADLINE_S) as answer:
            result = json.load(answer)["data"]["result"]
        return [(series["metric"], float(series["value"][1])) for series in result]

    def firing(self, run: str) -> set[str]:
        """Alerts of a run that fire now."""
        return {labels["alertname"] for labels, _ in self.query(f'ALERTS{{alertstate="firing",run="{run}"}}')}

    def fired(self) -> set[tuple[str, str]]:
        """Alerts that have fired at any time, each with its run (empty if it names none)."""
        found = self.query('present_over_time(ALERTS{alertstate="firing"}[1d])')
        return {(labels["alertname"], labels.get("run", "")) for labels, _ in found}

    def _answers(self) -> bool:
        assert self._process.poll() is None, (self._folder / "prometheus.log").read_text()
        try:
            with urlopen(self._url("-/ready"), timeout=DEADLINE_S):
                return True
        except (URLError, ConnectionError):
            return False

    def _url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._port}/{path}"

    def _write_targets(self) -> None:
        new = self._folder / "targets.new"
        new.write_text(json.dumps([{"targets": sorted(self._targets)}]))
        new.rename(self._folder / "targets.json")
