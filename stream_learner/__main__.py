"""Entry point of the `stream-learner` command."""

import signal


def main() -> None:
    """Import and run the command line. Ctrl-C during the import ends the process without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from stream_learner import cli

    cli.main()


if __name__ == "__main__":
    main()
