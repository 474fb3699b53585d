"""Error messages name the missing right. `make acls` shows on a real broker that every right is needed."""

from typing import Any

import pytest
from kafka import errors

from stream_learner.config import KafkaSettings, Settings
from stream_learner.errors import ExitCode, KafkaUnavailableError
from stream_learner.streams.rights import RIGHTS, Role, check_rights, missing_right

LEARNER = KafkaSettings.model_validate(
    {"security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN", "sasl_username": "learner", "sasl_password": "x"}
)


@pytest.mark.parametrize(
    ("error", "operation", "said"),
    [
        (errors.TopicAuthorizationFailedError({"b", "a"}), "Write", "lacks Write on topic a, b;"),
        (
            errors.TopicAuthorizationFailedError("a"),
            "Describe",
            "lacks Describe on topic a (Read and Write include it);",
        ),
        (errors.GroupAuthorizationFailedError("g"), "Write", "lacks Read on group g;"),
        (errors.GroupAuthorizationFailedError("it failed for group 'g'."), "Write", "lacks Read on group g;"),
        (
            errors.GroupAuthorizationFailedError("FindCoordinatorResponse error for GROUP/s.g: "),
            "Write",
            "lacks Read on group s.g;",
        ),
        (errors.TransactionalIdAuthorizationFailedError(), "Read", "lacks Write on transactional id known;"),
        (errors.ClusterAuthorizationFailedError("no"), "IdempotentWrite", "lacks IdempotentWrite on the cluster;"),
    ],
)
def test_a_refusal_names_user_operation_and_resource(error: errors.AuthorizationError, operation: str, said: str):
    assert f"user learner {said}" in missing_right(LEARNER, error, operation, "known")


def topic(name: str, operations: list[str] | None, error: int = 0) -> dict[str, Any]:
    return {"name": name, "error_code": error, "authorized_operations": operations}


def test_all_missing_rights_on_topics_are_named_at_once():
    settings = Settings.model_validate({"run": {"id": "r"}, "input": {"topics": ["i", "j"]}, "kafka": LEARNER})
    rights = [right for general in RIGHTS[Role.WORKER] for right in general.of(settings)]
    outputs = {right.name for right in rights if right.resource == "topic"} - {"i", "j"}
    everything = ["READ", "WRITE", "DESCRIBE", "DESCRIBE_CONFIGS"]
    described = [topic("i", everything), *(topic(name, everything) for name in outputs)]
    check_rights(settings, Role.WORKER, [*described, topic("j", everything)])
    check_rights(settings, Role.WORKER, [*described, topic("j", None)])  # an old broker does not say
    check_rights(settings, Role.WORKER, [*described, topic("j", [], errors.UnknownTopicOrPartitionError.errno)])
    hidden = topic("j", None, errors.TopicAuthorizationFailedError.errno)
    poor = [t | {"authorized_operations": ["WRITE"]} if t["name"] == "r.metrics" else t for t in described]
    with pytest.raises(KafkaUnavailableError) as refused:
        check_rights(settings, Role.WORKER, [*poor, hidden])
    assert refused.value.code == ExitCode.KAFKA
    assert "user learner lacks Read on topic j, DescribeConfigs on topic r.metrics;" in str(refused.value)
