"""Each security protocol on a real broker: valid clients connect, and others get the reason."""

import json
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from acls import allow
from command_line import stream_learner
from secured import LEARNER, MECHANISMS, OPERATOR, PASSWORD, Secured

from stream_learner import config
from stream_learner.config import KafkaSettings, Settings
from stream_learner.contract.topics import Names
from stream_learner.errors import ExitCode, KafkaUnavailableError, UsageError
from stream_learner.follow.status import read_status
from stream_learner.streams import topics
from stream_learner.streams.connection import ask
from stream_learner.streams.election import Election
from stream_learner.streams.rights import RIGHTS, Right, Role

WAYS = [
    *((protocol, mechanism) for protocol in ("SASL_PLAINTEXT", "SASL_SSL") for mechanism in MECHANISMS),
    ("SSL", None),
]
COMMAND = [sys.executable, "-m", "stream_learner"]
RECORDS = 300


def settings(run_id: str, kafka: dict[str, Any]) -> Settings:
    return Settings.model_validate({"run": {"id": run_id}, "input": {"topics": [f"{run_id}.images"]}, "kafka": kafka})


def knock(kafka: dict[str, Any]) -> None:
    ask(KafkaSettings.model_validate(kafka), "knocking", lambda admin: admin.list_topics())


def refusal(kafka: dict[str, Any]) -> str:
    """Return why there is no connection. The reason is reported long before `kafka.request_timeout_s`."""
    began = time.monotonic()
    with pytest.raises(KafkaUnavailableError) as refused:
        knock(kafka | {"request_timeout_s": 250})
    assert time.monotonic() - began < 100
    assert refused.value.code == ExitCode.KAFKA
    message = str(refused.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(("protocol", "mechanism"), WAYS)
def test_topics_and_status_get_through(secured: Secured, unique_name: str, protocol: str, mechanism: str | None):
    run = settings(unique_name, secured.kafka(protocol, mechanism))
    assert len(topics.create(run, input_partitions=1)) == 9
    topics.check(run)
    assert read_status(run).lag == {f"{unique_name}.images": {0: 0}}


@pytest.mark.parametrize(
    ("protocol", "mechanism"),
    [("SASL_SSL", "PLAIN"), ("SASL_SSL", "SCRAM-SHA-512"), ("SASL_PLAINTEXT", "SCRAM-SHA-256")],
)
def test_a_wrong_password_is_called_so(secured: Secured, tmp_path: Path, protocol: str, mechanism: str):
    wrong = tmp_path / "password"
    wrong.write_text("hunter2\n")
    message = refusal(secured.kafka(protocol, mechanism, sasl_password_file=wrong))
    assert "SaslAuthenticationFailedError" in message
    assert "check the credentials in [kafka]" in message
    assert "hunter2" not in message


def test_a_worker_says_a_wrong_password_within_three_lines(secured: Secured, tmp_path: Path, unique_name: str):
    wrong = tmp_path / "password"
    wrong.write_text("hunter2\n")
    kafka = secured.kafka("SASL_SSL", "PLAIN", sasl_password_file=wrong)
    file = tmp_path / "worker.toml"
    file.write_text(
        f'run.id = "{unique_name}"\ninput.topics = ["images"]\nmonitoring.port = 0\n'
        f"kafka = {{{', '.join(f'{key} = {json.dumps(str(value))}' for key, value in kafka.items())}}}\n"
    )
    done = stream_learner("run", file, folder=tmp_path)
    assert done.code == ExitCode.KAFKA
    assert "check the credentials in [kafka]" in done.err.replace("\n", " ")
    assert len(done.err.splitlines()) <= 3, done.err


@pytest.mark.parametrize("protocol", ["SASL_SSL", "SSL"])
def test_an_authority_that_is_not_trusted_is_named_as_the_reason(secured: Secured, protocol: str):
    mechanism = "SCRAM-SHA-512" if protocol == "SASL_SSL" else None
    message = refusal(secured.kafka(protocol, mechanism, ssl_cafile=None))
    assert "certificate verify failed" in message
    assert "the certificates in [kafka]" in message


def test_a_certificate_must_name_the_host(secured: Secured):
    kafka = secured.kafka("SSL", bootstrap_servers=f"localhost:{secured.ports['SSL']}")
    assert "not valid for 'localhost'" in refusal(kafka)
    knock(kafka | {"ssl_check_hostname": False})


def test_a_broker_that_asks_for_a_certificate_gets_none(secured: Secured):
    assert "the certificates in [kafka]" in refusal(secured.kafka("SSL", ssl_certfile=None))


@pytest.mark.parametrize(
    ("spoken", "understood"), [("PLAINTEXT", "SSL"), ("SSL", "SASL_PLAINTEXT"), ("PLAINTEXT", "SASL_PLAINTEXT")]
)
def test_another_protocol_than_the_listeners(secured: Secured, spoken: str, understood: str):
    kafka = secured.kafka(understood, security_protocol=spoken)
    assert "kafka.security_protocol" in refusal(kafka)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ssl_cafile", "missing.pem"),
        ("ssl_keyfile", "missing.key"),
        ("ssl_keyfile", "authority.key"),
        ("ssl_certfile", "extensions.cnf"),
        ("ssl_key_password_file", "password"),
        ("ssl_key_password_file", None),
    ],
)
def test_certificates_that_cannot_be_loaded_are_named(secured: Secured, name: str, value: str | None):
    kafka = secured.kafka("SSL", None, **{name: value and secured.folder / value})
    with pytest.raises(UsageError, match=r"kafka.ssl_cafile = .*kafka.ssl_certfile = .* cannot be loaded") as error:
        knock(kafka)
    assert "\n" not in str(error.value)


def test_who_lacks_rights_is_told_so(secured: Secured, unique_name: str):
    run = settings(unique_name, secured.kafka("SASL_SSL", "SCRAM-SHA-256", sasl_username=LEARNER))
    with pytest.raises(
        KafkaUnavailableError,
        match=r"refused access while looking for topics: user learner lacks Describe on topic .*ACLs",
    ):
        topics.create(run)


def test_who_may_not_read_the_group_is_told_so(secured: Secured, unique_name: str):
    run = settings(unique_name, secured.kafka("SASL_SSL", "SCRAM-SHA-256"))
    topics.create(run)
    run = run.model_copy(update={"kafka": run.kafka.model_copy(update={"sasl_username": LEARNER})})
    rights = [Right("Read", "topic", Names.under(run.prefix).checkpoints, "")]
    allow(secured.broker.settings, rights)
    with closing(Election(run)) as vote, pytest.raises(KafkaUnavailableError, match=r"refused access .* ACLs"):
        vote.poll(60.0)
    allow(secured.broker.settings, [*rights, Right("Read", "group", run.standby_group, "")])
    with closing(Election(run)) as vote:
        vote.take_over()
        assert vote.elected


def test_a_run_over_sasl_ssl_with_the_documented_rights(secured: Secured, unique_name: str, tmp_path: Path):
    """Every command, over SASL_SSL with SCRAM and the password in a file."""

    def file(name: str, user: str) -> str:
        kafka = secured.kafka("SASL_SSL", "SCRAM-SHA-512", sasl_username=user)
        path = tmp_path / name
        path.write_text(
            f'''
            run = {{id = "{unique_name}", on_conflict = "take_over"}}
            input.topics = ["{unique_name}.images"]
            model = {{name = "mlp", height = 8, width = 8, channels = 1}}
            release = {{every_records = {RECORDS}, min_held_out = 1, formats = ["safetensors"]}}
            checkpoint = {{store = "{tmp_path / "objects"}", every_s = 1000}}
            monitoring.port = 0
            log.format = "json"
            kafka = {{{", ".join(f"{key} = {json.dumps(value)}" for key, value in kafka.items())}}}
            '''
        )
        return str(path)

    def command(*arguments: str) -> str:
        """Standard output of a command that succeeds."""
        done = stream_learner(*arguments, folder=tmp_path)
        assert done.code == ExitCode.OK, done.err
        assert PASSWORD not in done.out + done.err
        return done.out

    operator, learner = file("operator.toml", OPERATOR), file("learner.toml", LEARNER)
    command("topics", operator, "--input-partitions", "1")
    assert f"fed {RECORDS} records" in command("feed", operator, "--limit", str(RECORDS))
    operating, run = secured.broker.settings, config.load(Path(learner))
    rights = [right for general in RIGHTS[Role.WORKER] for right in general.of(run)]
    lacking = [right for right in rights if right.name.endswith("weights") or right.operation == "Read"]
    allow(operating, [right for right in rights if right not in lacking])
    refused = stream_learner("run", learner, folder=tmp_path)
    assert refused.code == ExitCode.KAFKA
    # All of them at the start, not one after the other when it is first used.
    assert all(str(right) in refused.err for right in lacking if right.resource == "topic")
    allow(operating, rights)
    learn(learner)
    allow(operating, [right for general in RIGHTS[Role.STATUS] for right in general.of(run)])
    found = json.loads(command("status", learner, "--json"))
    assert found["manifest"]["release"]["sequence"] == 1
    assert found["lag"] == {f"{unique_name}.images": {"0": 0}}


def learn(file: str) -> None:
    """Runs a worker to its first checkpoint, and stops it."""
    with subprocess.Popen([*COMMAND, "run", file], stderr=subprocess.PIPE, text=True) as worker:
        assert worker.stderr is not None
        log = ""
        for line in worker.stderr:
            log += line
            if '"event":"checkpoint"' in line:
                worker.send_signal(signal.SIGTERM)
    assert worker.returncode == 0, log
    assert PASSWORD not in log
