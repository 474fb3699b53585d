"""Settings of the process: run, connection to Kafka, circuit breaker, monitoring, logs."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, SecretStr, model_validator

from stream_learner.config.fields import MAX_KAFKA_S, MIB, FileName, KafkaName, Section, read_secret


def _a_power_of_two(number: int) -> int:
    if number & (number - 1):
        raise ValueError("must be a power of two")
    return number


class RunSettings(Section):
    id: KafkaName
    """Name of the run, the life of one model. It is the key of manifests, and the name of the folder in the store."""
    seed: NonNegativeInt = 0
    """Seed of the initial weights, of dropout and of the memory's choice of samples."""
    shards: Annotated[PositiveInt, Field(le=1024), AfterValidator(_a_power_of_two)] = 1
    """Number of shards: a power of two. Each shard has an equal share of the batch, of the memory and of the held-out
    sets, and partitions of its own. The processes of a run share the shards, and the run learns the same bytes with any
    number of processes. Each shard is computed on its own, so use 1 for a run of one process. A run must keep the
    number."""
    stop_deadline_s: PositiveFloat = 60.0
    """Seconds that a stop (SIGTERM) may take, including the last save. After that the process exits with code 10."""
    on_conflict: Literal["standby", "take_over", "exit"] = "standby"
    """Action of a worker that starts while another worker of its run is alive. `standby`: wait, with the newest state
    loaded, until the other worker stops or dies. `take_over`: replace the other worker. `exit`: exit with code 14. A
    worker that was replaced stands by at its next start, even with `take_over`."""
    session_timeout_s: Annotated[PositiveFloat, Field(le=MAX_KAFKA_S)] = 10.0
    """Seconds of silence after which the brokers consider the active worker dead, and a standby takes over. Must be
    within the brokers' `group.min.session.timeout.ms` and `group.max.session.timeout.ms`."""


def _servers(text: str) -> str:
    if not re.fullmatch(r"[^,\s@/]+:\d+(\s*,\s*[^,\s@/]+:\d+)*", text):
        raise ValueError("must be host:port, separated by commas; credentials have their own settings")
    return text


class KafkaSettings(Section):
    """Settings of the connection to Kafka."""

    bootstrap_servers: Annotated[str, AfterValidator(_servers)] = "127.0.0.1:9092"
    """Brokers to connect to first, as `host:port`, separated by commas."""
    client_id: str = "stream-learner"
    """Client id that the brokers see."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """Protocol of the connections: with or without encryption, with or without SASL."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    """SASL mechanism. The two SASL protocols need it."""
    sasl_username: str | None = None
    """SASL user."""
    sasl_password: SecretStr | None = None
    """SASL password. Prefer `sasl_password_file`."""
    sasl_password_file: FileName | None = None
    """File that holds the SASL password. A trailing newline is removed."""
    ssl_cafile: FileName | None = None
    """Certificates of the trusted authorities (PEM); the system's certificates when unset."""
    ssl_certfile: FileName | None = None
    """Client certificate (PEM), if the brokers require one."""
    ssl_keyfile: FileName | None = None
    """Key of the client certificate (PEM)."""
    ssl_key_password_file: FileName | None = None
    """File that holds the password of `ssl_keyfile`."""
    ssl_check_hostname: bool = True
    """Whether the broker's certificate must name the host that the worker connects to."""
    request_timeout_s: PositiveFloat = 30.0
    """Seconds to wait for a broker's answer to a request. After the same time without any answer, the worker is no
    longer ready."""
    give_up_s: PositiveFloat = 600.0
    """Seconds without any answer from Kafka after which the worker exits with code 3, so that a supervisor restarts it.
    At least `request_timeout_s`. If a format of your own postpones a record for the same time, the worker exits with
    code 17."""

    @model_validator(mode="after")
    def _sasl_is_whole(self) -> "KafkaSettings":
        wants_sasl = self.security_protocol.startswith("SASL")
        if wants_sasl and not (self.sasl_mechanism and self.sasl_username and self.password() is not None):
            raise ValueError(f"{self.security_protocol} needs sasl_mechanism, sasl_username and sasl_password_file")
        unused = [name for name in type(self).model_fields if name.startswith("sasl_") and getattr(self, name)]
        if unused and not wants_sasl:
            raise ValueError(
                f"security_protocol = {self.security_protocol} does not use {', '.join(unused)}; set it to SASL_SSL or "
                "SASL_PLAINTEXT, or remove them"
            )
        return self

    @model_validator(mode="after")
    def _gives_up_last(self) -> "KafkaSettings":
        if self.give_up_s < self.request_timeout_s:
            raise ValueError(
                f"give_up_s = {self.give_up_s:g} must be at least request_timeout_s = {self.request_timeout_s:g}, or "
                "one slow answer would end the worker"
            )
        return self

    def password(self) -> str | None:
        """Return the SASL password, from its file if one is set.

        Raises ValueError when the file cannot be read.
        """
        if self.sasl_password_file is not None:
            return read_secret(self.sasl_password_file, "sasl_password_file")
        return self.sasl_password.get_secret_value() if self.sasl_password else None

    def key_password(self) -> str | None:
        """Return the password of the client certificate's key. Raises ValueError when its file cannot be read."""
        return read_secret(self.ssl_key_password_file, "ssl_key_password_file") if self.ssl_key_password_file else None


class RejectsSettings(Section):
    max_share: Annotated[float, Field(gt=0, le=1)] = 0.05
    """The worker stops when more than this share of the last `window` records were rejected."""
    window: PositiveInt = 1_000
    """Number of last records over which the share is computed. The share does not count until the process has read this
    number of records."""
    max_in_a_row: PositiveInt = 200
    """Consecutive rejected records, over all topics, that stop the worker, even if it has read few records. Deletion
    markers and rare labels do not count."""


class FollowerSettings(Section):
    """Settings of `stream-learner follow` and `stream-learner serve`."""

    name: KafkaName | None = None
    """Name of this follower, different from those of the run's other followers. If set, the follower writes to
    `<prefix>.acks` which release it uses, and `stream-learner status` shows this."""


class ServeSettings(Section):
    """Settings of `stream-learner serve`."""

    host: str = "127.0.0.1"
    """Address of the server. The default is loopback."""
    port: Annotated[NonNegativeInt, Field(le=65_535)] = 8080
    """Port of the server; 0 takes a free one."""
    grpc_port: Annotated[NonNegativeInt, Field(le=65_535)] | None = None
    """Port of the same protocol over gRPC, 0 for a free one; no gRPC when unset."""
    max_body_bytes: PositiveInt = 64 * MIB
    """Largest body of a request. A larger one gets the status 413."""
    max_images: PositiveInt = 1024
    """Most images in a request."""
    max_held_bytes: PositiveInt = 512 * MIB
    """Most bytes of the bodies of all requests at a time. Further requests get the status 503."""
    max_waiting_images: PositiveInt = 4096
    """Most images that wait to be computed. Further requests get the status 503."""
    max_connections: PositiveInt = 1000
    """Most connections at a time. Requests on further connections get the status 503, except for health pages."""
    timeout_s: PositiveFloat = 30.0
    """Seconds in which a request must arrive and be answered. After that it gets the status 503."""
    publish_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the predictions to publish to `<prefix>.predictions`, from 0 to 1. Answers wait for this only while the
    brokers are confirming 10,000 other predictions."""


class MonitoringSettings(Section):
    host: str = "127.0.0.1"
    """Address of `/metrics` and the health pages. The default is loopback."""
    port: Annotated[int, Field(ge=0, le=65535)] = 9464
    """Port of `/metrics` and the health pages. 0 takes a free port and logs it. If another worker of the run on the
    same host uses this port, the worker also takes a free port. If the run has several ranks on a host, the port of
    each is 1 higher than that of the rank before."""
    live_timeout_s: PositiveFloat = 120.0
    """Seconds after which `/livez` fails if the worker's loop has not completed an iteration. If the run has several
    ranks, the process then ends too."""


class LogSettings(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest severity to write."""
    format: Literal["console", "json"] = "console"
    """`console` for people, `json` for log collectors (one object per line, on standard error)."""
