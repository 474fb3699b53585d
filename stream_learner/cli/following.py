"""The command `follow`, which writes the releases of a run to a directory or registry."""

from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from stream_learner.cli.options import ConfigFile, Overrides
from stream_learner.cli.output import load_follower
from stream_learner.errors import ExitCode, UsageError
from stream_learner.run.signals import LEAVE_S, end_process, stop_on_signals


class Layout(StrEnum):
    PLAIN = "plain"
    TRITON = "triton"
    MLSERVER = "mlserver"
    KSERVE = "kserve"
    HUGGINGFACE = "huggingface"


SERVED = (Layout.TRITON, Layout.MLSERVER)
"""Layouts of servers that load a model when they are asked to."""


def follow(
    config_file: ConfigFile = None,
    overrides: Overrides = None,
    *,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="DIR",
            help="Directory to write, or `mlflow:URL`: the model registry of an MLflow server. One process at a time.",
        ),
    ],
    layout: Annotated[
        Layout | None,
        typer.Option(
            help="`plain`: a folder for each release, and the link `current`. `triton`, `mlserver`: a model of the "
            "server's repository. `kserve`, `huggingface`: a repository for each release, and `current`.",
            show_default="plain",
        ),
    ] = None,
    keep: Annotated[
        int | None,
        typer.Option(min=1, help="Delete all but this number of newest releases. Default: all.", show_default=False),
    ] = None,
    sign_key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Sign each release's folder with this private key (PEM, elliptic curve), as `model.sig` "
            "(OpenSSF Model Signing).",
            show_default=False,
        ),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Write the newest release and exit.")] = False,
    load: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Make the server at this URL load each release (the repository API of Triton and MLServer).",
            show_default=False,
        ),
    ] = None,
    notify: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Post a JSON document to this URL for each release.", show_default=False),
    ] = None,
) -> None:
    """Write each verified release of a run to a directory or registry for other servers, until stopped."""
    leave_s = LEAVE_S
    stop = stop_on_signals(lambda: leave_s, at_once=lambda: True, leave_s=lambda: leave_s)
    from stream_learner.follow import delivery
    from stream_learner.follow.acknowledging import CLOSE_S
    from stream_learner.follow.loading import Loads
    from stream_learner.follow.notices import Notices
    from stream_learner.monitoring import logs

    settings = load_follower(config_file, overrides)
    logs.configure(settings.log.level, settings.log.format)
    if settings.follow.name:
        leave_s += CLOSE_S  # to leave the list of followers
    if load and layout not in SERVED:
        raise UsageError(f"--load needs --layout {' or '.join(SERVED)}")
    loads = Loads(load, settings.run.id, stop) if load else None
    notices = Notices(notify, stop) if notify else None
    with closing(delivery.open_target(to, settings, layout, keep, sign_key)) as target:
        if once:
            delivery.deliver_newest(settings, target, loads, notices)
        else:
            delivery.deliver_all(settings, target, loads, notices, stop)
    end_process(ExitCode.OK)
