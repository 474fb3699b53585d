import gzip
import socket
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection, HTTPResponse

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from stream_learner.errors import UsageError
from stream_learner.monitoring.health import Health, Phase
from stream_learner.monitoring.metrics import Metrics
from stream_learner.monitoring.server import serve
from stream_learner.records.report import Report

# Name without its suffix, type, unit that the help names.
DOCUMENTED = {
    "records_in": ("counter", "records"),
    "records_learned": ("counter", "records"),
    "records_held_out": ("counter", "records"),
    "records_rejected": ("counter", "records"),
    "records_lost": ("counter", "offsets"),
    "phase": ("gauge", "1 for that phase"),
    "kafka_warnings": ("counter", "messages"),
    "steps": ("counter", "steps"),
    "sample_weight": ("histogram", "no unit"),
    "loss": ("gauge", "nats"),
    "accuracy": ("gauge", "ratio from 0 to 1"),
    "position": ("gauge", "offset"),
    "lag_records": ("gauge", "records"),
    "lag_seconds": ("gauge", "seconds"),
    "poll_seconds": ("histogram", "seconds"),
    "decode_seconds": ("histogram", "seconds"),
    "step_seconds": ("histogram", "seconds"),
    "checkpoint_seconds": ("histogram", "seconds"),
    "last_checkpoint_timestamp_seconds": ("gauge", "seconds since 1970"),
    "last_checkpoint_bytes": ("gauge", "bytes"),
    "checkpoint_sequence": ("gauge", "number"),
    "memory_items": ("gauge", "samples"),
    "memory_bytes": ("gauge", "bytes"),
    "unsaved_records": ("gauge", "records"),
    "releases": ("counter", "releases"),
    "release_refusals": ("counter", "candidates"),
    "records_discarded": ("counter", "offsets"),
    "negative_flip_rate": ("gauge", "ratio"),
    "old_class_drop": ("gauge", "ratio"),
    "calibration_error": ("gauge", "ratio from 0 to 1"),
    "kappa": ("gauge", "ratio"),
    "class_accuracy": ("gauge", "ratio from 0 to 1"),
    "forgetting": ("gauge", "ratio from -1 to 1"),
    "drifts": ("counter", "drifts"),
    "drift_window": ("gauge", "samples"),
    "boosted": ("gauge", "1 when it is"),
    "store_failures": ("counter", "attempts"),
    "build": ("info", "no unit"),
}


@pytest.fixture
def health() -> Health:
    return Health(live_timeout_s=10, clock=lambda: 0.0)


@pytest.fixture
def port(health: Health) -> Iterator[int]:
    registry = CollectorRegistry()
    metrics = Metrics(registry, version="1.2.3")
    metrics.follow(health)
    metrics.observe(Report(spans={}, records=32))
    with closing(serve("127.0.0.1", 0, registry, health)) as server:
        yield server.port


def get(port: int, path: str, **headers: str) -> tuple[HTTPResponse, bytes]:
    with closing(HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response, response.read()


def test_openmetrics_has_every_documented_metric_and_its_help(port):
    response, body = get(port, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert (response.getheader("Content-Type") or "").startswith("application/openmetrics-text")
    families = {family.name: family for family in parse_openmetrics(body.decode())}
    assert families.keys() == {f"stream_learner_{name}" for name in DOCUMENTED}
    for name, (kind, unit) in DOCUMENTED.items():
        family = families[f"stream_learner_{name}"]
        assert family.type == kind
        assert unit in family.documentation


def test_the_plain_format_carries_the_figures(port):
    _, body = get(port, "/metrics")
    samples = {sample.name: sample for family in parse(body.decode()) for sample in family.samples}
    assert samples["stream_learner_records_in_total"].value == 32
    assert samples["stream_learner_build_info"].labels == {"version": "1.2.3"}


def test_metrics_are_compressed_for_those_who_ask(port):
    response, body = get(port, "/metrics", **{"Accept-Encoding": "gzip"})
    assert response.getheader("Content-Encoding") == "gzip"
    assert b"stream_learner_records_in_total 32.0" in gzip.decompress(body)


def test_health_pages_follow_the_worker(port, health):
    health.enter(Phase.RECOVERING)
    for path in ("/startupz", "/readyz"):
        response, body = get(port, path)
        assert (response.status, body) == (503, b"recovering: the run is being taken over\n")
    health.enter(Phase.LEARNING)
    for path in ("/startupz", "/livez", "/readyz"):
        response, body = get(port, path)
        assert (response.status, body) == (200, b"ok\n")
    health.enter(Phase.STANDBY)
    response, body = get(port, "/readyz")
    assert (response.status, body) == (503, b"standing by: another worker of the run is learning\n")


def test_another_path_is_not_found_and_says_which_there_are(port):
    response, body = get(port, "/")
    assert response.status == 404
    assert body == b"here are /metrics, /startupz, /livez, /readyz\n"


def test_nothing_is_written_about_requests(port, capfd):
    get(port, "/livez")
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"no request\r\n\r\n")
        client.recv(1024)
    assert capfd.readouterr() == ("", "")


def test_a_taken_port_names_the_setting_to_change(port, health):
    with pytest.raises(UsageError, match=rf"127\.0\.0\.1:{port} .*change monitoring.host or monitoring.port"):
        serve("127.0.0.1", port, CollectorRegistry(), health)


def test_an_address_that_is_not_this_machines_names_the_setting_too(health):
    with pytest.raises(UsageError, match=r"change monitoring\.host"):
        serve("192.0.2.1", 0, CollectorRegistry(), health)


def test_after_closing_the_port_is_free(health):
    server = serve("127.0.0.1", 0, CollectorRegistry(), health)
    server.close()
    serve("127.0.0.1", server.port, CollectorRegistry(), health).close()
