"""Entry point of the `stream-learner` command."""

import signal


def main() -> None:
    """Run the command line. Ctrl-C ends the process without a traceback while it is imported."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from stream_learner import cli

    cli.main()


if __name__ == "__main__":
    main()
