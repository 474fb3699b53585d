"""Rights (ACLs) that each program needs on Kafka, and error messages that name the missing right.

`docs/security.md` takes its tables from `RIGHTS`. A test removes each right in turn on a real broker.
"""

import re
from enum import StrEnum
from typing import Any, NamedTuple

from kafka import errors as kafka_errors

from stream_learner.config import KafkaSettings, Settings
from stream_learner.contract.topics import BESIDE, OUTPUTS
from stream_learner.errors import KafkaUnavailableError

WHERE = "docs/security.md lists the ACLs of each role"


class Role(StrEnum):
    """A program that needs rights of its own."""

    WORKER = "worker"
    CREATOR = "topic creator"
    STATUS = "status"
    FOLLOWER = "follower"
    SERVER = "server"
    CHOOSER = "release chooser"
    REBUILD = "rebuild"
    PRODUCER = "producer"


class Right(NamedTuple):
    """An operation on a resource, in Kafka's terms. `name` may contain `<prefix>`, or be `<input>` for input topics.

    If `to_evaluate` is true, only a run with `served.evaluate` needs the right.
    """

    operation: str
    resource: str
    name: str
    purpose: str
    to_evaluate: bool = False

    def __str__(self) -> str:
        return f"{self.operation} on {self.resource} {self.name}"

    def of(self, settings: Settings) -> list["Right"]:
        """Return the right on the resources of one run."""
        if self.to_evaluate and not settings.served.evaluate:
            return []
        names = settings.input.topics if self.name == "<input>" else [self.name.replace("<prefix>", settings.prefix)]
        return [self._replace(name=name) for name in names]


def _on_topics(operation: str, topics: tuple[str, ...], purpose: str) -> list[Right]:
    return [Right(operation, "topic", f"<prefix>.{topic}", purpose) for topic in topics]


_CHECKED = _on_topics("DescribeConfigs", OUTPUTS, "check the topic's settings")

_PREDICTIONS = Right(
    "Read", "topic", "<prefix>.predictions", "read served predictions, if `served.evaluate` is true", to_evaluate=True
)

# Describe is listed only where neither Read nor Write is listed, because both include it.
RIGHTS: dict[Role, list[Right]] = {
    Role.WORKER: [
        Right("Read", "topic", "<input>", "read records"),
        _PREDICTIONS,
        Right("Read", "topic", "<prefix>.checkpoints", "find the newest manifest, read back what was published"),
        Right("Read", "topic", "<prefix>.history", "find the newest manifest if others write to the checkpoints topic"),
        *_on_topics("Write", OUTPUTS, "publish"),
        *_CHECKED,
        Right(
            "Write",
            "transactional id",
            "stream-learner.<prefix>.worker",
            "publish in transactions, fence a predecessor",
        ),
        Right("Read", "group", "stream-learner.<prefix>.worker", "mirror the positions for lag tools"),
        Right("Read", "group", "stream-learner.<prefix>.standby", "elect the active worker"),
    ],
    Role.CREATOR: [
        Right("Create", "topic", "<input>", "create the topic"),
        *_on_topics("Create", OUTPUTS + BESIDE, "create the topic"),
        Right("Describe", "topic", "<input>", "check the topic"),
        *_on_topics("Describe", OUTPUTS + BESIDE, "check the topic"),
        *_CHECKED,
        *_on_topics("DescribeConfigs", BESIDE, "check the topic's settings"),
    ],
    Role.STATUS: [
        Right("Describe", "topic", "<input>", "compute the lag"),
        Right("Read", "topic", "<prefix>.checkpoints", "read the newest manifest"),
        Right("Read", "topic", "<prefix>.history", "find the newest manifest if others write to the checkpoints topic"),
        Right("Read", "topic", "<prefix>.metrics", "read the newest window"),
        Right("Read", "topic", "<prefix>.acks", "list the followers"),
        *_on_topics("Describe", ("weights", "dead-letters"), "check the topic"),
        *_CHECKED,
    ],
    Role.FOLLOWER: [
        Right("Read", "topic", "<prefix>.checkpoints", "read the newest manifest"),
        Right("Read", "topic", "<prefix>.history", "find the newest manifest if others write to the checkpoints topic"),
        Right("Read", "topic", "<prefix>.weights", "read the bytes of the release"),
        Right("Read", "topic", "<prefix>.pins", "obey pins and withdrawals"),
    ],
    Role.SERVER: [
        Right("Read", "topic", "<prefix>.checkpoints", "read the newest manifest"),
        Right("Read", "topic", "<prefix>.weights", "read the bytes of the release"),
        Right("Read", "topic", "<prefix>.pins", "obey pins and withdrawals"),
        Right("Write", "topic", "<prefix>.predictions", "publish predictions, if `serve.publish_share` is not 0"),
    ],
    Role.CHOOSER: [
        Right("Read", "topic", "<prefix>.checkpoints", "read the newest manifest"),
        Right("Read", "topic", "<prefix>.history", "find the newest manifest if others write to the checkpoints topic"),
        Right("Read", "topic", "<prefix>.pins", "find the pinned release and the withdrawn ones"),
        Right("Write", "topic", "<prefix>.pins", "pin or withdraw a release"),
    ],
    Role.REBUILD: [
        Right("Read", "topic", "<input>", "read the records again"),
        _PREDICTIONS,
        Right("Read", "topic", "<prefix>.history", "read the manifests"),
        *_on_topics("Describe", ("checkpoints", "weights", "metrics", "dead-letters"), "check the topic"),
        *_CHECKED,
    ],
    Role.PRODUCER: [Right("Write", "topic", "<input>", "send records")],
}

# Kafka's own implications (KIP-11).
INCLUDED_IN = {"Describe": "Read and Write include it", "Create": "Create on the cluster includes it"}


def check_rights(settings: Settings, role: Role, described: list[dict[str, Any]]) -> None:
    """Raise KafkaUnavailableError if the user lacks rights on topics that the role needs. The error names all of them.

    `described` are kafka-python's descriptions of topics. Brokers add the user's rights to them (KIP-430). Without this
    check, a missing right would show only at its first use. That can be long after the start: at a dead letter or a
    release.
    """
    allowed: dict[str, set[str]] = {}
    for topic in described:
        if topic["error_code"] == kafka_errors.TopicAuthorizationFailedError.errno:
            allowed[topic["name"]] = set()
        elif not topic["error_code"] and topic["authorized_operations"] is not None:
            allowed[topic["name"]] = {name.title().replace("_", "") for name in topic["authorized_operations"]}
    lacking = [
        str(right)
        for general in RIGHTS[role]
        for right in general.of(settings)
        if right.resource == "topic" and right.operation not in allowed.get(right.name, {right.operation})
    ]
    if lacking:
        raise KafkaUnavailableError(
            f"Kafka at {settings.kafka.bootstrap_servers} denies rights that the role {role} needs: "
            f"{_user(settings.kafka)} lacks {', '.join(lacking)}; {WHERE}"
        )


def missing_right(
    kafka: KafkaSettings, error: kafka_errors.AuthorizationError, operation: str, name: str | None = None
) -> str:
    """Describe the right that a refused request lacks: the user, the operation and the resource.

    `operation` is the operation on topics that the request needs. `name` is the resource if the error does not name it.
    """
    named = _named(error) or name
    match error:
        case kafka_errors.TopicAuthorizationFailedError():
            resource = f"topic {named}"
        case kafka_errors.GroupAuthorizationFailedError():
            operation, resource = "Read", f"group {named}"
        case kafka_errors.TransactionalIdAuthorizationFailedError():
            operation, resource = "Write", f"transactional id {named}"
        case _:
            resource = "the cluster"
    included = f" ({INCLUDED_IN[operation]})" if operation in INCLUDED_IN else ""
    return f"{_user(kafka)} lacks {operation} on {resource}{included}; {WHERE}"


def _named(error: kafka_errors.AuthorizationError) -> str:
    """Return the names of the resources in kafka-python's error: a set, a bare or quoted name, or `GROUP/name:`."""
    found = error.args[0] if error.args else ""
    if isinstance(found, (set, frozenset)):
        return ", ".join(sorted(found))
    in_sentence = re.search(r"'(.+)'|/(\S+):", found)
    return (in_sentence[1] or in_sentence[2]) if in_sentence else found


def _user(kafka: KafkaSettings) -> str:
    return f"user {kafka.sasl_username}" if kafka.sasl_username else "the user of this connection"
