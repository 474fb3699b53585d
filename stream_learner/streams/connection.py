"""Settings that every Kafka client of the program shares, and Kafka's errors in the program's words."""

import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from kafka import KafkaAdminClient, KafkaConsumer
from kafka import errors as kafka_errors

from stream_learner.config import KafkaSettings
from stream_learner.errors import KafkaUnavailableError, UsageError

FETCH_BYTES = 8 * 1024 * 1024
RETRY_PAUSE_S = 0.2

T = TypeVar("T")


def client_config(kafka: KafkaSettings) -> dict[str, Any]:
    """Keyword arguments for any kafka-python client. Raises UsageError when a certificate cannot be loaded."""
    config: dict[str, Any] = {
        "bootstrap_servers": [server.strip() for server in kafka.bootstrap_servers.split(",")],
        "client_id": kafka.client_id,
        "request_timeout_ms": int(kafka.request_timeout_s * 1000),
        "bootstrap_timeout_ms": int(kafka.request_timeout_s * 1000),
        "security_protocol": kafka.security_protocol,
    }
    if kafka.security_protocol.startswith("SASL"):
        config |= {
            "sasl_mechanism": kafka.sasl_mechanism,
            "sasl_plain_username": kafka.sasl_username,
            "sasl_plain_password": kafka.password(),
        }
    if kafka.security_protocol.endswith("SSL"):
        config["ssl_context"] = _ssl_context(kafka)
    return config


def _ssl_context(kafka: KafkaSettings) -> ssl.SSLContext:
    # One context of our own, so that producer, consumers and admin cannot differ in what they trust.
    try:
        context = ssl.create_default_context(cafile=kafka.ssl_cafile)
        context.check_hostname = kafka.ssl_check_hostname
        if kafka.ssl_certfile:
            context.load_cert_chain(kafka.ssl_certfile, kafka.ssl_keyfile, kafka.key_password())
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"the certificates named in [kafka] cannot be loaded: {error}") from None
    return context


def reader(kafka: KafkaSettings, *, committed_only: bool = True, **more: Any) -> KafkaConsumer:
    """A consumer outside any group: it reads what it is assigned, commits nothing and never jumps by itself."""
    config = client_config(kafka) | {
        "group_id": None,
        "enable_auto_commit": False,
        "isolation_level": "read_committed" if committed_only else "read_uncommitted",
        "allow_auto_create_topics": False,
        # 'latest' would jump to the end when an offset is out of range, and lose what lies between.
        "auto_offset_reset": "none",
        "max_partition_fetch_bytes": FETCH_BYTES,
        "metrics_enabled": False,
    }
    return KafkaConsumer(**(config | more))


@contextmanager
def kafka_failures(kafka: KafkaSettings, doing: str) -> Iterator[None]:
    """Turns kafka-python's errors into KafkaUnavailableError with what was being done and what to check."""
    try:
        yield
    except (kafka_errors.SaslAuthenticationFailedError, kafka_errors.AuthorizationError) as error:
        raise KafkaUnavailableError(
            f"Kafka at {kafka.bootstrap_servers} refused access while {doing} ({type(error).__name__}: {error}); "
            "check the credentials in [kafka] and the user's ACLs"
        ) from error
    except (kafka_errors.KafkaError, OSError) as error:
        raise KafkaUnavailableError(
            f"Kafka at {kafka.bootstrap_servers} failed while {doing} ({type(error).__name__}: {error}); "
            "check kafka.bootstrap_servers and that the brokers are up"
        ) from error


def ask(kafka: KafkaSettings, doing: str, question: Callable[[KafkaAdminClient], T]) -> T:
    """The answer of an admin client, asked again while Kafka is still electing or loading what it needs to answer.

    Raises KafkaUnavailableError once `kafka.request_timeout_s` are over.
    """
    deadline = time.monotonic() + kafka.request_timeout_s
    with kafka_failures(kafka, doing):
        client = KafkaAdminClient(**client_config(kafka))
        try:
            while True:
                try:
                    return question(client)
                except kafka_errors.KafkaError as error:
                    if not error.retriable or time.monotonic() > deadline:
                        raise
                    time.sleep(RETRY_PAUSE_S)
        finally:
            client.close()
