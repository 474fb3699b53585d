"""Arguments and options of several commands."""

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[Path | None, typer.Argument(metavar="CONFIG", help="Settings file (TOML).", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting; may be repeated.", show_default=False),
]

DataFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="Images: a folder of parquet files in the Hugging Face layout, or of class folders. Default: "
        "handwritten digits.",
        show_default=False,
    ),
]
