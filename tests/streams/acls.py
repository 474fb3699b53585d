"""A user of a real broker with the rights that a test grants."""

import re
import time
from collections.abc import Iterable

from kafka import KafkaAdminClient
from kafka.admin import (
    ACL,
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourcePatternFilter,
    ResourceType,
)
from secured import LEARNER

from stream_learner.config import KafkaSettings
from stream_learner.streams.connection import ask
from stream_learner.streams.rights import Right

RESOURCES = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactional id": ResourceType.TRANSACTIONAL_ID,
}
DEADLINE_S = 30.0


def allow(operator: KafkaSettings, rights: Iterable[Right]) -> None:
    """Give the user `LEARNER` exactly these rights. Return once the broker enforces them."""
    every = ResourcePatternFilter(ResourceType.ANY, None, ACLResourcePatternType.ANY)
    everything = ACLFilter(f"User:{LEARNER}", None, ACLOperation.ANY, ACLPermissionType.ANY, every)
    wanted = [_acl(right) for right in rights]

    def change(admin: KafkaAdminClient) -> None:
        admin.delete_acls([everything])
        admin.create_acls(wanted)
        deadline = time.monotonic() + DEADLINE_S
        while set(admin.describe_acls(everything)[0]) != set(wanted):
            assert time.monotonic() < deadline, "the broker does not show the ACLs that were set"

    ask(operator, "changing ACLs", change)


def _acl(right: Right) -> ACL:
    operation = ACLOperation[re.sub("(?<=[a-z])(?=[A-Z])", "_", right.operation).upper()]
    pattern = ResourcePattern(RESOURCES[right.resource], right.name)
    return ACL(f"User:{LEARNER}", "*", operation, ACLPermissionType.ALLOW, pattern)
