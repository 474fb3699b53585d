"""Each role of docs/security.md on a real broker: it works with its rights, and fails if any one is missing.

`make test` does not collect this file. `make acls` runs it in order, because other roles read the worker's records.
"""

import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import child
import pytest
from acls import allow
from feed import Draft, feed, mixed
from harness import POLL_S, Run
from secured import LEARNER, Secured

from stream_learner import read_release
from stream_learner.config import MIB
from stream_learner.contract.topics import Names
from stream_learner.errors import ExitCode, KafkaUnavailableError
from stream_learner.streams import topics
from stream_learner.streams.rights import RIGHTS, Right, Role

RECORDS = 300
SETTINGS = {
    # One checkpoint, with dead letters and a release in it.
    "release.every_records": RECORDS,
    "release.min_held_out": 1,
    "served.evaluate": True,  # so that the predictions topic needs rights too
    "checkpoint.every_records": 10 * RECORDS,
    # A worker that was refused leaves a transaction open. Readers wait until the brokers abort it.
    "checkpoint.timeout_s": 8.0,
    "checkpoint.max_pending_bytes": MIB,
    "release.inline_max_bytes": MIB,
}
INCLUDES_DESCRIBE = ("Read", "Write")


class Outcome(NamedTuple):
    """How a command ended, and what it wrote."""

    code: int | None
    text: str


Target = Callable[..., None]


def unchecked(log: Path, arguments: list[str]) -> None:
    """The command line in a process that does not look at its rights first: the broker is the judge."""
    topics.check_rights = lambda *_: None
    child.command(log, arguments)


def ended(run: Run, target: Target, *command: str) -> Outcome:
    worker = run.call(*command, target=target)
    text = worker.ends(*ExitCode)
    return Outcome(worker.poll(), text)


def learn(run: Run, target: Target) -> Outcome:
    """A worker's life, up to its first checkpoint."""
    run.feed(mixed(RECORDS + 20))
    worker = run.call("run", target=target)
    while worker.poll() is None and '"event":"checkpoint"' not in worker.text():
        time.sleep(POLL_S)
    if worker.poll() is None:
        worker.stop()
    return Outcome(worker.poll(), worker.text())


def follow(run: Run, _: Target) -> Outcome:
    """A program that reads the newest release."""
    try:
        assert read_release(run.id, run.settings.kafka, prefix=run.prefix).labels
    except KafkaUnavailableError as error:
        return Outcome(error.code, str(error))
    return Outcome(0, "")


def choose(run: Run, target: Target) -> Outcome:
    """A person who pins a release, or unpins it if it is pinned."""
    written = run.read("pins")
    is_pinned = bool(written) and b'"action":"pin"' in (written[-1].value or b"")
    return ended(run, target, "release unpin" if is_pinned else "release pin 1")


def serve(run: Run, target: Target) -> Outcome:
    """A server that publishes its predictions, up to its first release."""
    server = run.call("serve", "--set", "serve.port=0", "--set", "serve.publish_share=1", target=target)
    while server.poll() is None and "lacks" not in server.text() and server.page("v2/health/ready")[0] != 200:
        time.sleep(POLL_S)
    if server.poll() is None:
        server.signal(signal.SIGTERM)
    text = server.ends(ExitCode.OK, ExitCode.KAFKA)
    return Outcome(ExitCode.KAFKA if "lacks" in text else server.poll(), text)


ROLES: dict[Role, Callable[[Run, Target], Outcome]] = {
    Role.WORKER: learn,
    Role.CREATOR: lambda run, target: ended(run, target, "topics", "--input-partitions", "1"),
    Role.STATUS: lambda run, target: ended(run, target, "status"),
    Role.FOLLOWER: follow,
    Role.SERVER: serve,
    Role.CHOOSER: choose,
    Role.REBUILD: lambda run, target: ended(run, target, "rebuild", "--from", "0", "--to", "1"),
    Role.PRODUCER: lambda run, target: ended(run, target, "feed", "--limit", "5"),
}
EVERY = [(role, right) for role in ROLES for right in RIGHTS[role]]


@pytest.fixture(scope="module")
def run(secured: Secured, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run whose commands are those of the user `LEARNER`."""
    run = Run(secured.broker, tmp_path_factory.mktemp("acls"), overrides=dict(SETTINGS))
    kafka = secured.kafka("SASL_PLAINTEXT", "PLAIN", sasl_username=LEARNER)
    run.overrides |= {f"kafka.{name}": value for name, value in kafka.items()}
    yield run
    run.close()


@pytest.fixture
def outcome(secured: Secured, run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Return a function that runs a role with all its rights except one, and gives the outcome."""

    def outcome(role: Role, missing: Right | None = None, target: Target = child.command) -> Outcome:
        if role == Role.CREATOR:  # of topics that do not exist yet
            name = f"created-{uuid.uuid4().hex[:8]}"
            monkeypatch.setitem(run.overrides, "run.id", name)
            monkeypatch.setitem(run.overrides, "input.topics", [f"{name}.input"])
        settings = run.settings
        allow(secured.broker.settings, [r for right in RIGHTS[role] if right != missing for r in right.of(settings)])
        if missing and missing[:3] == ("Read", "topic", "<prefix>.history"):  # needed where somebody else wrote
            foreign = Draft(b"key", b"no manifest", [], None)
            feed(run.broker.bootstrap_servers, Names.under(settings.prefix).checkpoints, [foreign])
        found = ROLES[role](run, target)
        if missing:
            (right,) = missing.of(settings)
            operations = [right.operation, *(["Describe"] if right.operation in INCLUDES_DESCRIBE else [])]
            named = [f"user {LEARNER} lacks {operation} on {right.resource} {right.name}" for operation in operations]
            assert any(name in found.text for name in named), found.text
        return found

    return outcome


@pytest.mark.parametrize("role", ROLES)
def test_a_role_works_with_its_rights(outcome: Callable[..., Outcome], role: Role) -> None:
    code, text = outcome(role)
    assert code == ExitCode.OK, text


@pytest.mark.parametrize(("role", "missing"), EVERY, ids=str)
def test_a_role_without(outcome: Callable[..., Outcome], role: Role, missing: Right) -> None:
    assert outcome(role, missing).code == ExitCode.KAFKA


@pytest.mark.parametrize(("role", "missing"), [pair for pair in EVERY if pair[1].resource == "topic"], ids=str)
def test_the_broker_refuses_a_role_without(outcome: Callable[..., Outcome], role: Role, missing: Right) -> None:
    """The table asks for nothing that the brokers do not."""
    # A manifest that was committed and cannot be read back is an unknown outcome.
    assert outcome(role, missing, unchecked).code in (ExitCode.KAFKA, ExitCode.PUBLISH)
