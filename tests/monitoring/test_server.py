import gzip
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from stream_learner.errors import UsageError
from stream_learner.monitoring import server
from stream_learner.monitoring.health import Health, Phase
from stream_learner.monitoring.metrics import Metrics
from stream_learner.monitoring.pages import Pages
from stream_learner.monitoring.report import Report
from stream_learner.monitoring.server import serve

# Name without its suffix, type, unit that the help names.
DOCUMENTED = {
    "foreign_records": ("counter", "records"),
    "tombstones": ("counter", "records"),
    "records_in": ("counter", "records"),
    "records_learned": ("counter", "records"),
    "records_held_out": ("counter", "records"),
    "records_rejected": ("counter", "records"),
    "records_lost": ("counter", "offsets"),
    "phase": ("gauge", "1 for the current phase"),
    "kafka_warnings": ("counter", "messages"),
    "record_timestamps": ("counter", "records"),
    "served_predictions": ("counter", "predictions"),
    "served_predictions_waiting": ("gauge", "predictions"),
    "served_accuracy": ("gauge", "ratio from 0 to 1"),
    "served_accuracy_predictions": ("gauge", "predictions"),
    "served_label_delay_seconds": ("histogram", "seconds"),
    "steps": ("counter", "steps"),
    "sample_weight": ("histogram", "no unit"),
    "loss": ("gauge", "nats"),
    "accuracy": ("gauge", "ratio from 0 to 1"),
    "accuracy_samples": ("gauge", "samples"),
    "position": ("gauge", "offset"),
    "collectives_seconds": ("counter", "seconds"),
    "collectives_sent_bytes": ("counter", "bytes"),
    "lag_records": ("gauge", "messages"),
    "lag_seconds": ("gauge", "seconds"),
    "poll_seconds": ("histogram", "seconds"),
    "decode_seconds": ("histogram", "seconds"),
    "step_seconds": ("histogram", "seconds"),
    "checkpoint_seconds": ("histogram", "seconds"),
    "last_checkpoint_timestamp_seconds": ("gauge", "seconds since 1970"),
    "last_fetch_timestamp_seconds": ("gauge", "seconds since 1970"),
    "last_commit_timestamp_seconds": ("gauge", "seconds since 1970"),
    "last_metadata_timestamp_seconds": ("gauge", "seconds since 1970"),
    "kafka_silence_seconds": ("gauge", "seconds"),
    "live": ("gauge", "1 when it does"),
    "format_waits": ("gauge", "1 when it does"),
    "log_start": ("gauge", "offset"),
    "refused_since_release": ("gauge", "candidates"),
    "last_checkpoint_bytes": ("gauge", "bytes"),
    "checkpoint_sequence": ("gauge", "number"),
    "memory_items": ("gauge", "samples"),
    "memory_bytes": ("gauge", "bytes"),
    "unsaved_records": ("gauge", "records"),
    "releases": ("counter", "releases"),
    "release_formats_missing": ("counter", "in releases"),
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
    with closing(serve("127.0.0.1", 0, registry, health, "digits")) as served:
        yield served.port


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
    assert body == b"known paths are /metrics, /startupz, /livez, /readyz\n"


def test_nothing_is_written_about_requests(port, capfd):
    get(port, "/livez")
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"no request\r\n\r\n")
        client.recv(1024)
    assert capfd.readouterr() == ("", "")


def ask(port: int, request: bytes) -> bytes:
    """Send a request, and return everything that the server sends until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(request)
        received = b""
        while data := client.recv(65536):
            received += data
        return received


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /livez HTTP/1.1\r\n\r\n", b"200 OK"),
        (b"GET /livez?verbose HTTP/1.0\r\nHost: x\r\n\r\n", b"200 OK"),
        (b"POST /livez HTTP/1.1\r\n\r\n", b"405 Method Not Allowed"),
        (b"no request\r\n\r\n", b"400 Bad Request"),
        (b"\x00\xff\r\n\r\n", b"400 Bad Request"),
        (b"GET /livez HTTP/1.1\r\nX: " + bytes(8 * 1024), b"400 Bad Request"),
    ],
)
def test_whatever_is_asked_has_an_answer(port, request_: bytes, status: bytes):
    assert ask(port, request_).startswith(b"HTTP/1.1 " + status + b"\r\n")


def test_a_head_request_gets_the_length_alone(port):
    head, _, body = ask(port, b"HEAD /startupz HTTP/1.1\r\n\r\n").partition(b"\r\n\r\n")
    assert b"Content-Length: 71" in head
    assert body == b""


def test_a_request_in_pieces_is_put_together(port):
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        for piece in (b"GET /li", b"vez HTTP/1.1\r\n", b"\r", b"\n"):
            client.sendall(piece)
        assert client.recv(1024).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize("sent", [b"", b"GET /livez"])
def test_a_client_that_does_not_ask_is_closed(health, monkeypatch, sent: bytes):
    monkeypatch.setattr(server, "TIMEOUT_S", 1.0)
    with (
        closing(serve("127.0.0.1", 0, CollectorRegistry(), health, "digits")) as served,
        socket.create_connection(("127.0.0.1", served.port), timeout=30) as client,
    ):
        client.sendall(sent)
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_two_thousand_slow_clients_keep_nobody_from_an_answer(port, health):
    health.enter(Phase.LEARNING)
    busy = threading.Event()
    matrix = np.ones((300, 300), np.float32)

    def train() -> None:
        """As training does: most of it is arithmetic, in which Python's lock is free."""
        while not busy.is_set():
            sum((matrix @ matrix)[0].tolist())

    threading.Thread(target=train, daemon=True).start()
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    command = [sys.executable, Path(__file__).with_name("slow_clients.py"), str(port), "2000"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as clients:
        assert clients.stdin
        assert clients.stdout
        assert clients.stdout.readline() == b"connected\n"
        for _ in range(20):
            response, body = get(port, "/livez")
            assert (response.status, body) == (200, b"ok\n")
            assert b"stream_learner_build_info" in get(port, "/metrics")[1]
            assert len(os.listdir("/proc/self/fd")) < files + server.MAX_CONNECTIONS + 10
            assert threading.active_count() <= threads
        clients.stdin.close()
    busy.set()
    assert clients.returncode == 0


def test_metrics_are_rendered_for_a_twentieth_of_the_time():
    class Clocks:
        now = cpu = 0.0
        rendered = 0

        def collect(self):
            self.cpu += 0.1  # seconds for one page
            self.rendered += 1
            return []

    clocks, registry = Clocks(), CollectorRegistry()
    registry.register(clocks)  # collects once itself
    clocks.rendered = 0
    pages = Pages(registry, Health(10), clock=lambda: clocks.now, cpu_clock=lambda: clocks.cpu)
    for _ in range(100):
        clocks.now += 0.1
        assert pages.answer("/metrics", {}).status == "200 OK"
    assert clocks.rendered == 5  # in ten seconds
    for accept in ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text; version=9.9.9", "x"):
        assert pages.answer("/metrics", {"accept": accept}).status == "200 OK"
    assert clocks.rendered == 6  # a page in each format, whatever version is asked for


def test_a_page_that_cannot_be_made_does_not_end_the_server(health, capsys):
    class Broken:
        fails = False

        def collect(self):
            if self.fails:
                raise RuntimeError("dictionary changed size during iteration")
            return []

    registry, broken = CollectorRegistry(), Broken()
    registry.register(broken)
    broken.fails = True
    with closing(serve("127.0.0.1", 0, registry, health, "digits")) as served:
        assert get(served.port, "/metrics")[0].status == 500
        assert get(served.port, "/livez")[0].status == 200
    assert "dictionary changed size" in capsys.readouterr().out


def test_a_taken_port_names_the_setting_to_change(port, health):
    with pytest.raises(UsageError, match=rf"127\.0\.0\.1:{port} .*change monitoring.host or monitoring.port"):
        serve("127.0.0.1", port, CollectorRegistry(), health, "digits")


def test_an_address_that_is_not_this_machines_names_the_setting_too(health):
    with pytest.raises(UsageError, match=r"change monitoring\.host"):
        serve("192.0.2.1", 0, CollectorRegistry(), health, "digits")


def test_after_closing_the_port_is_free(health):
    served = serve("127.0.0.1", 0, CollectorRegistry(), health, "digits")
    served.close()
    serve("127.0.0.1", served.port, CollectorRegistry(), health, "digits").close()


def test_a_port_that_another_worker_of_the_run_has_is_replaced_by_a_free_one(health, capsys):
    with closing(serve("127.0.0.1", 0, CollectorRegistry(), health, "other")) as free:
        port = free.port
    with closing(serve("127.0.0.1", port, CollectorRegistry(), health, "digits")) as first:
        with pytest.raises(UsageError, match="cannot listen on"):
            serve("127.0.0.1", port, CollectorRegistry(), health, "another run")
        with closing(serve("127.0.0.1", port, CollectorRegistry(), health, "digits")) as second:
            assert first.port == port != second.port
            assert get(second.port, "/livez")[0].status == 200
            assert f"uses a free port instead free={second.port} taken={port}" in capsys.readouterr().out
    with closing(serve("127.0.0.1", port, CollectorRegistry(), health, "digits")) as again:
        assert again.port == port
