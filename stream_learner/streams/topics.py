"""Topics of a run: their required settings, creation and checks."""

from dataclasses import dataclass, field

import structlog
from kafka import KafkaAdminClient
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, ConfigResourceType

from stream_learner.config import MIB, AnySettings, Settings
from stream_learner.contract.topics import Names
from stream_learner.errors import KafkaUnavailableError, TopicsError
from stream_learner.streams.connection import ask, describe, kafka_failures, topics_are
from stream_learner.streams.rights import Role, check_rights

log = structlog.get_logger()

DAY_MS = 24 * 60 * 60 * 1000
RECORD_OVERHEAD_BYTES = 64 * 1024
CHUNK_BYTES = 512 * 1024
# Largest manifest or window. The topic's limit adds room for headers and Kafka's own bytes.
MAX_DOCUMENT_BYTES = 4 * MIB - RECORD_OVERHEAD_BYTES
# Smallest segment size and largest message size that managed Kafka services allow.
MANAGED_SEGMENT_BYTES = 50 * MIB
MANAGED_MESSAGE_BYTES = 8 * MIB
HIDDEN = kafka_errors.TopicAuthorizationFailedError.errno
LIMITED = (kafka_errors.PolicyViolationError, kafka_errors.InvalidConfigurationError)
MISSING = kafka_errors.UnknownTopicOrPartitionError.errno
# Kafka's own topics that a worker needs. The brokers create them at first use with these settings: the number of
# replicas, and the number of replicas that must be in sync.
INTERNAL = {
    "__consumer_offsets": ("offsets.topic.replication.factor", None),
    "__transaction_state": ("transaction.state.log.replication.factor", "transaction.state.log.min.isr"),
}


@dataclass(frozen=True)
class TopicPlan:
    """Required settings of a topic. `partitions` is None if any number is allowed.

    `least` holds the lowest acceptable values of settings for which less than the value in `configs` is enough.
    """

    name: str
    partitions: int | None
    configs: dict[str, str] = field(default_factory=dict)
    least: dict[str, str] = field(default_factory=dict)

    def within_limits(self) -> dict[str, str]:
        """Return the configs, adjusted to the limits of managed Kafka."""
        found = self.configs.copy()
        if "segment.bytes" in found:
            found["segment.bytes"] = str(max(int(found["segment.bytes"]), MANAGED_SEGMENT_BYTES))
        if "max.message.bytes" in found:
            found["max.message.bytes"] = str(min(int(found["max.message.bytes"]), MANAGED_MESSAGE_BYTES))
        return found


def dead_letter_bytes(settings: Settings) -> int:
    """Return the maximum size of a dead letter in bytes: the largest input record and the headers with the reason."""
    return settings.input.max_record_bytes + RECORD_OVERHEAD_BYTES


def output_plan(settings: Settings) -> list[TopicPlan]:
    """Return the plans of the run's output topics."""
    names = Names.under(settings.prefix)
    keep_90_days = {"cleanup.policy": "delete", "retention.ms": str(90 * DAY_MS)}
    keep_30_days = {"cleanup.policy": "delete", "retention.ms": str(30 * DAY_MS)}
    # Compaction keeps the newest committed record of each key. Retention could delete it, because it is old or because
    # many aborted records follow it. Segments are small, because the active segment is never compacted.
    newest_of_each_key = {"cleanup.policy": "compact", "segment.bytes": str(16 * MIB)}
    chunk_bytes = str(CHUNK_BYTES + RECORD_OVERHEAD_BYTES)
    return [
        TopicPlan(names.checkpoints, 1, newest_of_each_key | {"max.message.bytes": str(4 * MIB)}),
        TopicPlan(names.history, 1, keep_90_days | {"max.message.bytes": str(4 * MIB)}),
        TopicPlan(names.weights, 1, newest_of_each_key | {"max.message.bytes": chunk_bytes}),
        TopicPlan(names.metrics, 1, keep_30_days | {"max.message.bytes": str(4 * MIB)}),
        TopicPlan(
            names.dead_letters,
            1,
            keep_30_days | {"max.message.bytes": str(dead_letter_bytes(settings))},
            least={
                "max.message.bytes": str(min(dead_letter_bytes(settings), MIB))
            },  # larger dead letters are sent without their value
        ),
    ]


def beside_plan(settings: Settings) -> list[TopicPlan]:
    """Return the plans of the topics that other programs and people write."""
    names = Names.under(settings.prefix)
    newest_of_each_key = {"cleanup.policy": "compact"}
    return [
        TopicPlan(names.predictions, 1, {"cleanup.policy": "delete", "retention.ms": str(7 * DAY_MS)}),
        TopicPlan(names.acks, 1, newest_of_each_key),
        TopicPlan(names.pins, 1, newest_of_each_key),
    ]


def create(settings: Settings, input_partitions: int | None = None) -> list[str]:
    """Create missing output topics, and missing input topics if `input_partitions` is set. Return the created names.

    Raises TopicsError when the brokers refuse to create a topic, KafkaUnavailableError.
    """
    plans = output_plan(settings) + beside_plan(settings)
    if input_partitions is not None:
        limit = {"max.message.bytes": str(settings.input.max_record_bytes)}
        plans += [TopicPlan(name, input_partitions, limit) for name in settings.input.topics]

    def question(client: KafkaAdminClient) -> list[str]:
        # Ask by name. A list of all topics leaves out topics that the user may not see. Creating such a topic fails.
        described = client.describe_topics([plan.name for plan in plans])
        if hidden := {t["name"] for t in described if t["error_code"] == HIDDEN}:
            raise kafka_errors.TopicAuthorizationFailedError(hidden)
        existing = {topic["name"] for topic in described if not topic["error_code"]}
        missing = [plan for plan in plans if plan.name not in existing]
        with kafka_failures(settings.kafka, "creating topics", "Create"):
            for plan in missing:
                _create(client, plan, settings.topics.replication_factor)
        return [plan.name for plan in missing]

    return ask(settings.kafka, "looking for topics", question)


def _create(client: KafkaAdminClient, plan: TopicPlan, replication_factor: int) -> None:
    error, why = _try(client, plan, plan.configs, replication_factor)
    if issubclass(error, LIMITED) and (taken := plan.within_limits()) != plan.configs:
        refused, (error, why) = why, _try(client, plan, taken, replication_factor)
        if error is kafka_errors.NoError:
            changed = {key: value for key, value in taken.items() if value != plan.configs[key]}
            log.warning(
                "the brokers refuse settings of a topic; it was created with adjusted settings",
                topic=plan.name,
                why=refused,
                taken=changed,
            )
    # Another process of this run may create the topic first. differences() checks the result.
    if error in (kafka_errors.NoError, kafka_errors.TopicAlreadyExistsError):
        client.wait_for_topics([plan.name])
    elif issubclass(error, kafka_errors.AuthorizationError):
        raise error({plan.name})
    elif error.retriable:
        raise error(why)
    else:
        raise TopicsError(
            f"the brokers refuse to create topic {plan.name}: {why or error.__name__} "
            "Set topics.replication_factor to at most the number of brokers, or create the topic with Kafka's own tools"
        )


def _try(
    client: KafkaAdminClient, plan: TopicPlan, configs: dict[str, str], replication_factor: int
) -> tuple[type[kafka_errors.KafkaError], str | None]:
    """Try to create a topic. Return the error, or NoError, and the brokers' message.

    kafka-python's own exception would print the whole request.
    """
    description = {"num_partitions": plan.partitions, "replication_factor": replication_factor, "configs": configs}
    answer = client.create_topics({plan.name: description}, raise_errors=False)["topics"][0]
    return kafka_errors.for_code(answer["error_code"]), answer["error_message"]


def differences(settings: Settings, input_partitions: int | None = None, role: Role | None = None) -> list[str]:
    """Return how the topics differ from their plans, in sentences.

    If `input_partitions` is set, input topics must have this number of partitions. If `role` is set, check only topics
    that this role uses. Raises KafkaUnavailableError, also when the user lacks a right on a topic that
    `role` needs.
    """
    if role is None:
        beside = beside_plan(settings)
    else:
        predictions = settings.predictions_topic if role in (Role.WORKER, Role.REBUILD) else None
        beside = [TopicPlan(predictions, None)] if predictions else []
    plans = output_plan(settings) + beside + [TopicPlan(name, input_partitions) for name in settings.input.topics]
    partitions, configs = ask(
        settings.kafka, "checking topics", lambda client: _describe(settings, client, plans, role)
    )
    missing = [plan.name for plan in plans if plan.name not in partitions]
    found = [f"{topics_are(missing)} missing"] if missing else []
    for plan in plans:
        if plan.name not in partitions:
            continue
        if plan.partitions is not None and partitions[plan.name] != plan.partitions:
            found.append(f"topic {plan.name} has {partitions[plan.name]} partitions, not {plan.partitions}")
        for key, wanted in plan.configs.items():
            if not _suffices(key, configs[plan.name].get(key), plan.least.get(key, wanted)):
                found.append(f"topic {plan.name} has {key}={configs[plan.name].get(key)}, not {wanted}")
    return found


def check(settings: Settings, input_partitions: int | None = None, role: Role | None = None) -> None:
    """Raise TopicsError when a topic is missing or differs from its plan. Also raise the errors of `differences`."""
    found = differences(settings, input_partitions, role)
    if found:
        raise TopicsError(
            f"{'; '.join(found)}. Create missing output topics with `stream-learner topics`, missing input topics with "
            "`stream-learner topics --input-partitions N`; change other settings with Kafka's own tools"
        )


def check_internal(settings: Settings) -> None:
    """Raise KafkaUnavailableError if Kafka's own topics are missing and there are too few brokers to create them.

    Without this check, a client would wait until its time-out: the brokers only answer that no coordinator is
    available.
    """

    def question(client: KafkaAdminClient) -> list[str]:
        missing = [t["name"] for t in client.describe_topics(list(INTERNAL)) if t["error_code"] == MISSING]
        if not missing:
            return []
        brokers = client.describe_cluster()["brokers"]
        configs = _configs(client, ConfigResourceType.BROKER, [str(brokers[0]["broker_id"])])
        return [why for name in missing for why in _too_few(name, len(brokers), next(iter(configs.values()), {}))]

    if found := ask(settings.kafka, "looking for Kafka's internal topics", question):
        raise KafkaUnavailableError(f"{'; '.join(found)}. Start more brokers, or lower these settings of the brokers")


def _too_few(topic: str, brokers: int, configs: dict[str, str]) -> list[str]:
    """Return why the brokers cannot create or write one of Kafka's own topics; an empty list if they can."""
    replicas, in_sync = ((name, int(configs[name])) if name in configs else ("", 0) for name in INTERNAL[topic])
    for name, needed in (replicas, in_sync):
        if needed > brokers:
            return [f"the brokers cannot create topic {topic}: {name} = {needed}, but {brokers} are up"]
    if replicas[1] and in_sync[1] > replicas[1]:
        return [f"no client can write to topic {topic}: {in_sync[0]} = {in_sync[1]}, but {replicas[0]} = {replicas[1]}"]
    return []


def topic_ids(settings: AnySettings, names: list[str]) -> dict[str, str]:
    """Return Kafka's id of each topic, which changes when a topic is deleted and created again (KIP-516).

    Raises TopicsError when a topic is missing, KafkaUnavailableError.
    """
    described = ask(settings.kafka, "looking up topic ids", lambda client: describe(client, names))
    return {topic["name"]: str(topic["topic_id"]) for topic in described}


def id_for_reader(settings: AnySettings, topic: str) -> str:
    """Return Kafka's id of a topic of a run that another program writes.

    Raises KafkaUnavailableError, and TopicsError when the topic is missing. Unlike the error of `topic_ids`, this one
    does not say how to create the topic.
    """
    try:
        return topic_ids(settings, [topic])[topic]
    except TopicsError:
        raise TopicsError(
            f"Kafka at {settings.kafka.bootstrap_servers} has no topic {topic}; check the run id and the prefix"
        ) from None


def dead_letter_limit(settings: Settings) -> int:
    """Return the size of the largest dead letter that the topic accepts, in bytes. Raises KafkaUnavailableError."""
    name = Names.under(settings.prefix).dead_letters

    def question(client: KafkaAdminClient) -> dict[str, dict[str, str]]:
        return _configs(client, ConfigResourceType.TOPIC, [name])

    found = ask(settings.kafka, "looking up the limit of dead letters", question, "DescribeConfigs")[name]
    return min(dead_letter_bytes(settings), int(found["max.message.bytes"]))


def cluster_id(settings: Settings) -> str:
    """Return the cluster's id. Raises KafkaUnavailableError."""
    return ask(settings.kafka, "looking up the cluster", lambda client: client.describe_cluster()["cluster_id"])


def _suffices(key: str, actual: str | None, wanted: str) -> bool:
    # Longer retention and larger messages than planned do no harm.
    if actual is not None and key in ("max.message.bytes", "retention.ms"):
        return int(actual) == -1 or int(actual) >= int(wanted)
    return key == "segment.bytes" or actual == wanted


def _describe(
    settings: Settings, client: KafkaAdminClient, plans: list[TopicPlan], role: Role | None
) -> tuple[dict[str, int], dict[str, dict[str, str]]]:
    """Return the number of partitions of each existing topic, and the configs of topics whose plan has configs."""
    # Ask by name: a list of all topics leaves out topics that the user may not see.
    described = client.describe_topics([plan.name for plan in plans])
    if role:
        check_rights(settings, role, described)
    names = [topic["name"] for topic in described if topic["error_code"] != MISSING]
    if not names:
        return {}, {}
    configured = [plan.name for plan in plans if plan.name in names and plan.configs]
    partitions = {t["name"]: len(t["partitions"]) for t in describe(client, names)}
    with kafka_failures(settings.kafka, "checking the settings of topics", "DescribeConfigs"):
        found = _configs(client, ConfigResourceType.TOPIC, configured)
        # kafka-python drops the error for a topic whose settings the user may not see. Every topic has settings.
        if hidden := {name for name, configs in found.items() if not configs}:
            raise kafka_errors.TopicAuthorizationFailedError(hidden)
        return partitions, found


def _configs(client: KafkaAdminClient, kind: ConfigResourceType, names: list[str]) -> dict[str, dict[str, str]]:
    """Return the settings of topics or brokers. The settings of a topic are empty if the user may not see them."""
    if not names:
        return {}
    found = client.describe_configs([ConfigResource(kind, name) for name in names], config_filter="all")
    return {
        name: {key: entry["value"] for key, entry in configs.items()}
        for name, configs in found[kind.name.lower()].items()
    }
