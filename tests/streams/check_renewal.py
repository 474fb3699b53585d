"""Certificates and passwords that are renewed while a worker runs."""

from pathlib import Path

from feed import mixed
from harness import Run
from secured import KEY_PASSWORD, PASSWORD, PROTOCOLS, SCRAM_USERS, Secured, make_certificates, make_properties

from stream_learner.local.broker import Broker, free_port

RENEWED = "close sesame"


def test_workers_outlive_new_certificates_and_a_new_password(tmp_path: Path):
    """One signs in with a password, one with a certificate."""
    make_certificates(tmp_path)
    (tmp_path / "password").write_text(PASSWORD)
    (tmp_path / "key-password").write_text(KEY_PASSWORD)
    ports = {name: free_port() for name in PROTOCOLS}
    properties = make_properties(tmp_path, ports)
    with Broker(tmp_path / "kafka", properties=properties, format_options=SCRAM_USERS) as broker:
        secured = Secured(broker, tmp_path, ports)
        runs: list[Run] = []
        for name, kafka in ("password", secured.kafka("SASL_SSL", "PLAIN")), ("certificate", secured.kafka("SSL")):
            overrides = {f"kafka.{name}": value for name, value in kafka.items()}
            runs.append(Run(broker, tmp_path / f"by-{name}", overrides=overrides | {"checkpoint.every_s": 0.5}))
        for run in runs:
            run.feed(mixed(500))
        workers = [run.start() for run in runs]
        for run, worker in zip(runs, workers, strict=True):
            run.learned(worker)
            worker.until("save", lambda run=run: run.saved() == run.ends())
        broker.stop()
        make_certificates(tmp_path)  # of a new authority; the former one is trusted no longer
        (tmp_path / "password").write_text(RENEWED)
        broker._properties = broker._properties.replace(PASSWORD, RENEWED)
        broker.start()
        for run, worker in zip(runs, workers, strict=True):
            run.feed(mixed(500))
            run.finish(worker)
