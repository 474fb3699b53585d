"""Commands that read a run from outside: `status`, and `serve`, which serves its releases over HTTP."""

import threading
from typing import Annotated

import msgspec
import typer
from rich.table import Column, Table
from rich.text import Text

from stream_learner.cli.options import ConfigFile, Overrides
from stream_learner.cli.output import load, load_follower, out, say, say_json
from stream_learner.contract.spans import describe_position, offsets_in_all, row_positions
from stream_learner.errors import ExitCode
from stream_learner.run.signals import end_process, stop_on_signals
from stream_learner.text import printable


def status(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
) -> None:
    """Show the newest checkpoint, the lag of each partition in messages, the newest metrics, and the followers.

    Reads Kafka only.
    """
    from stream_learner.follow.status import read_status
    from stream_learner.formats.rejects import describe

    found = read_status(load(config_file, overrides))
    if as_json:
        say_json(msgspec.json.encode(found).decode())
        return
    if found.manifest is None:
        say("no checkpoint yet")
    else:
        manifest, release = found.manifest, found.manifest.release
        say(
            f"checkpoint {manifest.sequence} of {manifest.created_at}, epoch {manifest.epoch}: "
            f"{manifest.url(manifest.state)}"
        )
        if release:
            say(f"release {release.sequence} of {release.created_at}: {manifest.url(release.object)}")
            say(f"test accuracy {_percent(release.test.accuracy)} on {release.test.total} samples")
    if found.window:
        window = found.window
        say(
            f"last window: {window.records} records, {window.learned} learned, "
            f"{sum(window.rejected.values())} rejected, {window.tombstones} deletion markers, "
            f"{offsets_in_all(window.lost)} lost, "
            f"prequential accuracy {_percent(window.prequential.accuracy)}"
        )
        if window.rejected_by_topic:
            say(f"rejected: {describe(window.rejected_by_topic)}")
    table = Table(Column("topic", overflow="fold"), "partition", "position", "lag")
    positions = row_positions(found.positions, found.manifest.rows if found.manifest else {})
    for topic, partitions in found.lag.items():
        for partition, lag in partitions.items():
            position = describe_position(*positions[topic][partition])
            table.add_row(printable(topic), str(partition), position, str(lag))
    out.print(table)
    if found.followers:
        table = Table(
            Column("follower", overflow="fold"), "release", "epoch", Column("since", no_wrap=True), "host", "program"
        )
        for ack in found.followers:
            table.add_row(
                ack.name,
                str(ack.sequence),
                str(ack.epoch),
                ack.since[:19].replace("T", " "),
                Text(printable(ack.host)),
                Text(printable(ack.program)),
            )
        out.print(table)


def serve(config_file: ConfigFile = None, overrides: Overrides = None) -> None:
    """Serve the newest release over HTTP and gRPC (Open Inference Protocol v2), until stopped."""
    started = threading.Event()
    stop = stop_on_signals(lambda: settings.run.stop_deadline_s, at_once=lambda: not started.is_set())
    from stream_learner.local import extra
    from stream_learner.monitoring import logs

    settings = load_follower(config_file, overrides)
    logs.configure(settings.log.level, settings.log.format)
    with extra("serve"):
        from stream_learner.follow.serving import server

    server.serve(settings, stop, started.set)
    end_process(ExitCode.OK)


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.1%}"
