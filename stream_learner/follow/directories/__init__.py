"""Directories of releases for other servers, one file for each group of layouts."""

from pathlib import Path

from stream_learner.follow.directories.base import Directory, Versioned
from stream_learner.follow.directories.huggingface import HuggingFace
from stream_learner.follow.directories.mlserver import MLServer
from stream_learner.follow.directories.plain import Plain
from stream_learner.follow.directories.triton import KServe, Triton
from stream_learner.follow.signing import Signer

LAYOUTS: dict[str, type[Directory]] = {
    "plain": Plain,
    "triton": Triton,
    "mlserver": MLServer,
    "kserve": KServe,
    "huggingface": HuggingFace,
}


def open_directory(
    path: Path, layout: str, run_id: str, keep: int | None = None, signer: Signer | None = None
) -> Directory:
    """Open a directory of one of `LAYOUTS`. Raises StoreError, UsageError."""
    directory = LAYOUTS[layout]
    return directory(path / run_id if issubclass(directory, Versioned) else path, keep, signer)
