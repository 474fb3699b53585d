"""Makes docs/demo.svg from a real run of the demo: the view when most of the feed is learned, and the summary."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from stream_learner.local.demo import run_demo
from stream_learner.local.view import View, summary_table

SHOWN_SHARE = 0.8


class Recorder:
    """Draws the view each time, and keeps the first picture in which enough is learned."""

    def __init__(self, view: View, console: Console):
        self._view = view
        self._console = console
        self._shown = False

    def refresh(self) -> None:
        if not self._shown and self._view.read >= SHOWN_SHARE * self._view.to_feed:
            self._console.print(self._view)
            self._shown = True


def main() -> None:
    console = Console(record=True, width=96, file=io.StringIO(), force_terminal=True)

    @contextmanager
    def show(view: View) -> Iterator[Recorder]:
        yield Recorder(view, console)

    run_demo(None, False, 0, console.print, show, lambda summary: console.print(summary_table(summary)))
    console.save_svg(str(Path(__file__).parent / "demo.svg"), title="make demo")


if __name__ == "__main__":
    main()
