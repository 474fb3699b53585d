"""Rights and credentials that are revoked: the worker ends with the reason, or waits; the next start continues."""

import signal
from collections.abc import Iterator
from typing import Any

import pytest
from child import Point
from confluent_kafka.admin._acl import AclBinding, AclBindingFilter, AclOperation, AclPermissionType
from confluent_kafka.admin._resource import ResourcePatternType, ResourceType
from confluent_kafka.admin._scram import (
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialDeletion,
    UserScramCredentialUpsertion,
)
from feed import mixed
from harness import DEADLINE_S, SHORT, NewRun, Run

from stream_learner.errors import ExitCode
from stream_learner.local.broker import HOST, Broker, free_port

USER, PASSWORD = "learner", "open sesame"
CREDENTIALS = [f'--add-scram=SCRAM-SHA-512=[name={USER},password="{PASSWORD}"]']
# Beside the usual listener one whose clients sign in.
PROPERTIES = """
listeners=PLAINTEXT://{{host}}:{{port}},CONTROLLER://{{host}}:{{controller_port}},SASL://{host}:{sasl}
advertised.listeners=PLAINTEXT://{{host}}:{{port}},SASL://{host}:{sasl}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_PLAINTEXT
inter.broker.listener.name=PLAINTEXT
sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.sasl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
"""


@pytest.fixture(scope="module")
def sasl_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, sasl_port: int) -> Iterator[Broker]:
    """This module's own, in place of the session's."""
    properties = PROPERTIES.format(host=HOST, sasl=sasl_port)
    with Broker(tmp_path_factory.mktemp("secured"), properties=properties, format_options=CREDENTIALS) as broker:
        yield broker


def signed_in(run: Run, sasl_port: int) -> Run:
    """The run, its workers those of a user who has the rights that they need."""
    run.overrides |= {
        "kafka.bootstrap_servers": f"{HOST}:{sasl_port}",
        "kafka.security_protocol": "SASL_PLAINTEXT",
        "kafka.sasl_mechanism": "SCRAM-SHA-512",
        "kafka.sasl_username": USER,
        "kafka.sasl_password": PASSWORD,
    }
    for kind in (ResourceType.TOPIC, ResourceType.TRANSACTIONAL_ID, ResourceType.GROUP, ResourceType.BROKER):
        grant(run, kind)
    return run


def right(run: Run, kind: ResourceType) -> tuple[Any, ...]:
    """Everything on what belongs to the run, and on the cluster, which Kafka's client library calls BROKER."""
    names = {ResourceType.TOPIC: run.id, ResourceType.BROKER: "kafka-cluster"}
    name = names.get(kind, f"stream-learner.{run.id}.")
    pattern = ResourcePatternType.LITERAL if kind == ResourceType.BROKER else ResourcePatternType.PREFIXED
    return kind, name, pattern, f"User:{USER}", "*", AclOperation.ALL, AclPermissionType.ALLOW


def grant(run: Run, kind: ResourceType) -> None:
    (granted,) = run.admin.create_acls([AclBinding(*right(run, kind))]).values()
    granted.result(DEADLINE_S)


def revoke(run: Run, kind: ResourceType) -> None:
    (revoked,) = run.admin.delete_acls([AclBindingFilter(*right(run, kind))]).values()
    assert revoked.result(DEADLINE_S)


@pytest.mark.parametrize(
    "kind", [ResourceType.TOPIC, ResourceType.TRANSACTIONAL_ID, ResourceType.GROUP], ids=lambda kind: kind.name.lower()
)
def test_rights_that_are_revoked(new_run: NewRun, sasl_port: int, kind: ResourceType) -> None:
    run = signed_in(new_run(**SHORT), sasl_port)
    run.feed(mixed(1000))
    worker = run.start_signalled(Point("transaction", "begin", 2), signal.SIGSTOP)
    worker.paused()
    revoke(run, kind)
    worker.signal(signal.SIGCONT)
    assert "ACLs" in worker.ends(ExitCode.KAFKA)
    assert "ACLs" in run.start().ends(ExitCode.KAFKA)
    grant(run, kind)
    run.finish(run.start())


def test_credentials_that_are_revoked(new_run: NewRun, sasl_port: int) -> None:
    """Open connections stay. A checkpoint needs a new one and waits, as long as the unsaved budget lasts."""
    run = signed_in(new_run(kafka__request_timeout_s=2.0), sasl_port)
    run.feed(mixed(1000))
    worker = run.start()
    worker.reaches("checkpoint_sequence", 1)
    change = UserScramCredentialDeletion(USER, ScramMechanism.SCRAM_SHA_512)
    run.admin.alter_user_scram_credentials([change])[USER].result(DEADLINE_S)
    run.feed(mixed(1000))
    worker.until("refusal", lambda: "a checkpoint could not be written" in worker.text())
    worker.reaches("kafka_warnings_total", 1)
    assert "the credentials in [kafka]" in run.start().ends(ExitCode.KAFKA)
    secret = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
    change = UserScramCredentialUpsertion(USER, secret, PASSWORD.encode())
    run.admin.alter_user_scram_credentials([change])[USER].result(DEADLINE_S)
    run.finish(worker)
