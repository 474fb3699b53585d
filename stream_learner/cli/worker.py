"""Commands that learn: `run`, and `rebuild`, which learns the same batches again and compares the bytes."""

from typing import Annotated

import typer

from stream_learner import config
from stream_learner.cli.options import ConfigFile, Overrides
from stream_learner.cli.output import load, progress, say
from stream_learner.errors import ExitCode
from stream_learner.run.gang import is_started
from stream_learner.run.launcher import start_again
from stream_learner.run.process import load_torch_libraries
from stream_learner.run.signals import end_process, stop_on_signals


def run(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Start again from the beginning when the run's manifests are lost."),
    ] = False,
    accept_rejects: Annotated[bool, typer.Option("--accept-rejects", help="Do not stop for rejected records.")] = False,
    ranks: Annotated[
        int, typer.Option("--ranks", min=1, help="Processes of the run on this machine; must divide run.shards.")
    ] = 1,
) -> None:
    """Learn from the input topics until stopped (SIGTERM, SIGHUP or Ctrl-C: save, then exit 0)."""
    if ranks > 1 and not is_started(ranks):
        end_process(start_again(ranks, config.load(config_file, overrides)))
    load_torch_libraries()
    from stream_learner.monitoring.health import Health

    health = None
    # While the worker is starting, a signal ends it at once: there is nothing to save, and a start may take long.
    stop = stop_on_signals(
        lambda: settings.run.stop_deadline_s, at_once=lambda: health is None or health.why_not_started() is not None
    )
    settings = config.load(config_file, overrides)
    health = Health(settings.monitoring.live_timeout_s, settings.kafka.request_timeout_s)
    from stream_learner.run import start

    start.run(settings, health, stop, end_process, fresh=fresh, accept_rejects=accept_rejects)
    # At once, because torch and the clients take a while to shut down, and NCCL may wait for ranks that are gone.
    end_process(ExitCode.OK)


def rebuild(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    *,
    start: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="STATE",
            help="State to start from: a checkpoint's sequence, or the state's key, URL or file; 0 for no state.",
        ),
    ],
    target: Annotated[
        str,
        typer.Option(
            "--to", metavar="MANIFEST", help="Checkpoint to rebuild: its sequence, or a file with its manifest."
        ),
    ],
) -> None:
    """Learn the batches before a checkpoint again, and compare the resulting bytes with the published ones."""
    from stream_learner.checkpoints.store import Store
    from stream_learner.run import rebuild as rebuilding
    from stream_learner.streams.cluster import Cluster

    settings = load(config_file, overrides)
    store = Store(settings.checkpoint.store, create=False)
    with progress("learning again") as show:
        rebuilt = rebuilding.rebuild(settings, store, Cluster(settings), start, target, show)
    say(f"checkpoint {rebuilt.end} rebuilt from {rebuilt.start}: {rebuilt.batches} batches, {rebuilt.records} records")
    say(f"state {rebuilt.state}, as published")
    if rebuilt.release:
        say(f"release {rebuilt.release}, as published")
