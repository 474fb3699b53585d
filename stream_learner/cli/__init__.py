"""Define the commands and their arguments, one file for each group. Other packages hold the logic."""

from stream_learner.cli import choosing, following, laptop, outside, past, setup, worker
from stream_learner.cli.app import app, exit_with, main

__all__ = ["app", "exit_with", "main"]

# In the order in which `--help` lists them.
app.command()(worker.run)
app.command()(laptop.demo)
app.command()(laptop.feed)
app.command()(laptop.kafka)
app.command()(setup.topics)
app.command("config")(setup.show_config)
app.command()(setup.tune)
app.command()(outside.status)
app.command()(following.follow)
app.command()(outside.serve)
app.command()(past.releases)
app.command()(past.history)
app.add_typer(choosing.release, name="release")
app.command()(worker.rebuild)
