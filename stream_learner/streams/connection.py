"""Settings that all Kafka clients of the program share, and translation of Kafka's errors into the program's errors."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from kafka import KafkaAdminClient
from kafka import errors as kafka_errors

from stream_learner.config import MIB, KafkaSettings
from stream_learner.errors import KafkaUnavailableError, TopicsError
from stream_learner.streams.bootstrap import REFUSALS, UnresolvedHostError, connect
from stream_learner.streams.credentials import certificates, password
from stream_learner.streams.reader import Reader
from stream_learner.streams.rights import missing_right

# Limits for one partition and for all partitions in a broker's response. The response's first batch may exceed them.
FETCH_BYTES = 8 * MIB
RESPONSE_BYTES = 50 * MIB
RETRY_PAUSE_S = 0.2
# Interval between metadata requests, in seconds. These requests find new partitions and show whether the
# brokers answer.
METADATA_S = 5.0

T = TypeVar("T")


def client_config(kafka: KafkaSettings) -> dict[str, Any]:
    """Return keyword arguments for any kafka-python client. Raises UsageError when credentials cannot be loaded."""
    config: dict[str, Any] = {
        "bootstrap_servers": [server.strip() for server in kafka.bootstrap_servers.split(",")],
        "client_id": kafka.client_id,
        "request_timeout_ms": int(kafka.request_timeout_s * 1000),
        "bootstrap_timeout_ms": int(kafka.request_timeout_s * 1000),
        "reconnect_backoff_max_ms": 1000,  # the default of Apache Kafka's own clients; kafka-python's default is 30 s
        "security_protocol": kafka.security_protocol,
    }
    if kafka.security_protocol.startswith("SASL"):
        config |= {
            "sasl_mechanism": kafka.sasl_mechanism,
            "sasl_plain_username": kafka.sasl_username,
            "sasl_plain_password": password(kafka),
        }
    if kafka.security_protocol.endswith("SSL"):
        config["ssl_context"] = certificates(kafka)
    return config


def reader(kafka: KafkaSettings, **more: Any) -> Reader:
    """Open a consumer, without a group by default. It never commits, and never jumps to another offset by itself."""
    config = client_config(kafka) | {
        "group_id": None,
        "enable_auto_commit": False,
        "isolation_level": "read_committed",
        # When an offset is out of range, 'latest' would jump to the end and skip all records before the end.
        "auto_offset_reset": "none",
        "max_partition_fetch_bytes": FETCH_BYTES,
        "fetch_max_bytes": RESPONSE_BYTES,
        # A healthy broker must answer at least once within `kafka.request_timeout_s`.
        "metadata_max_age_ms": int(min(METADATA_S, kafka.request_timeout_s / 3) * 1000),
        "metrics_enabled": False,
    }
    return connect(Reader, config | more)


@contextmanager
def kafka_failures(
    kafka: KafkaSettings, doing: str, operation: str = "Describe", name: str | None = None
) -> Iterator[None]:
    """Turn kafka-python's errors into KafkaUnavailableError, which says what failed and what to check.

    `operation` and `name` are passed to `missing_right`.
    """
    try:
        yield
    except kafka_errors.AuthorizationError as error:
        raise KafkaUnavailableError(
            f"Kafka at {kafka.bootstrap_servers} refused access while {doing}: "
            f"{missing_right(kafka, error, operation, name)}"
        ) from error
    except REFUSALS as error:
        unsupported = isinstance(error, kafka_errors.UnsupportedSaslMechanismError)
        wrong = f"kafka.sasl_mechanism = {kafka.sasl_mechanism}" if unsupported else "the credentials in [kafka]"
        raise KafkaUnavailableError(
            f"Kafka at {kafka.bootstrap_servers} refused access while {doing} ({error}); check {wrong}"
        ) from error
    except (kafka_errors.KafkaError, OSError) as error:
        raise KafkaUnavailableError(
            f"Kafka at {kafka.bootstrap_servers} failed while {doing} ({error}); check {', '.join(_relevant(kafka))} "
            "and that the brokers are up"
        ) from error


@contextmanager
def opening(kafka: KafkaSettings, doing: str, operation: str = "Describe", **more: Any) -> Iterator[Reader]:
    """Open a `reader`. The reader stays open after the block, unless the block raises an error.

    `doing` and `operation` are passed to `kafka_failures`, which translates the errors. `more` is passed to `reader`.
    """
    with kafka_failures(kafka, doing, operation):
        consumer = reader(kafka, **more)
        try:
            yield consumer
        except BaseException:
            consumer.close()
            raise


def describe(client: KafkaAdminClient, names: list[str]) -> list[dict[str, Any]]:
    """Return Kafka's descriptions of topics. Call this function in the `question` of `ask`.

    Raises TopicsError when a topic is missing, KafkaError when a topic cannot be described. kafka-python itself only
    stores these errors in the descriptions.
    """
    described = client.describe_topics(names)
    missing = [t["name"] for t in described if t["error_code"] == kafka_errors.UnknownTopicOrPartitionError.errno]
    if missing:
        raise TopicsError(
            f"{topics_are(missing)} missing. Create missing output topics with `stream-learner topics`, missing input "
            "topics with `stream-learner topics --input-partitions N`"
        )
    for topic in described:
        if topic["error_code"]:
            raise kafka_errors.for_code(topic["error_code"])({topic["name"]})
    return described


def topics_are(names: list[str]) -> str:
    """Return the names of topics and the verb that agrees: "topic a is", "topics a, b are"."""
    return f"topic {names[0]} is" if len(names) == 1 else f"topics {', '.join(names)} are"


def _relevant(kafka: KafkaSettings) -> list[str]:
    """Return the settings on which a connection depends, for a message."""
    relevant = ["kafka.bootstrap_servers", "kafka.security_protocol"]
    if kafka.security_protocol.startswith("SASL"):
        relevant.append("the credentials in [kafka]")
    if kafka.security_protocol.endswith("SSL"):
        relevant.append("the certificates in [kafka]")
    return relevant


def ask(kafka: KafkaSettings, doing: str, question: Callable[[KafkaAdminClient], T], operation: str = "Describe") -> T:
    """Call `question` with an admin client and return the result. Repeat after errors that Kafka calls retriable.

    `operation` is the operation on topics that the question needs. Raises KafkaUnavailableError, for retriable errors
    after `kafka.request_timeout_s`.
    """
    deadline = time.monotonic() + kafka.request_timeout_s
    with kafka_failures(kafka, doing, operation):
        client = connect(KafkaAdminClient, client_config(kafka))
        try:
            while True:
                try:
                    return question(client)
                except kafka_errors.KafkaError as error:
                    hopeless = not error.retriable or isinstance(error, UnresolvedHostError)
                    if hopeless or time.monotonic() > deadline:
                        raise
                    time.sleep(RETRY_PAUSE_S)
        finally:
            client.close()
