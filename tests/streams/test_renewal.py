"""Certificates and passwords that are renewed while a worker runs."""

from pathlib import Path

import pytest
from feed import mixed
from harness import Run
from secured import KEY_PASSWORD, PASSWORD, PROTOCOLS, SCRAM_USERS, Secured, make_certificates, make_properties

from stream_learner.local.broker import Broker, free_port

RENEWED = "close sesame"


@pytest.mark.parametrize(("protocol", "mechanism"), [("SASL_SSL", "PLAIN"), ("SSL", None)])
def test_a_worker_outlives_new_certificates_and_a_new_password(tmp_path: Path, protocol: str, mechanism: str | None):
    make_certificates(tmp_path)
    (tmp_path / "password").write_text(PASSWORD)
    (tmp_path / "key-password").write_text(KEY_PASSWORD)
    ports = {name: free_port() for name in PROTOCOLS}
    properties = make_properties(tmp_path, ports)
    with Broker(tmp_path / "kafka", properties=properties, format_options=SCRAM_USERS) as broker:
        kafka = Secured(broker, tmp_path, ports).kafka(protocol, mechanism)
        overrides = {f"kafka.{name}": value for name, value in kafka.items()}
        run = Run(broker, tmp_path / "renewal", overrides=overrides | {"checkpoint.every_s": 0.5})
        run.feed(mixed(500))
        worker = run.start()
        run.learned(worker)
        worker.until("save", lambda: run.saved() == run.ends())
        broker.stop()
        # Halfway: the former ones are used, also by clients that are opened now, as for each checkpoint.
        (tmp_path / "password").unlink()
        (tmp_path / "client.pem").write_text("-----BEGIN CERTIFICATE-----\n")
        broker.start()
        run.feed(mixed(500))
        run.learned(worker)
        worker.until("save", lambda: run.saved() == run.ends())
        assert "the former" in worker.text()
        broker.stop()
        make_certificates(tmp_path)  # of a new authority; the former one is trusted no longer
        (tmp_path / "password").write_text(RENEWED)
        broker._properties = broker._properties.replace(PASSWORD, RENEWED)
        broker.start()
        run.feed(mixed(500))
        run.finish(worker)
        run.close()
