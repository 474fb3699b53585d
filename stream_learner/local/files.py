"""Find the files of a data set, and the images among them."""

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from stream_learner.errors import DataError
from stream_learner.formats import images
from stream_learner.local.faults import Fault

# macOS adds `__MACOSX` to archives.
HIDDEN = (".", "__MACOSX")
NOT_AN_IMAGE = "neither a JPEG nor a PNG"
JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
OTHER_SUFFIXES = (".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jxl", ".jp2")
IMAGE_SUFFIXES = frozenset((*JPEG_SUFFIXES, ".png", *OTHER_SUFFIXES))
# GIF, BMP, TIFF, WebP, AVIF and HEIC, JPEG XL, JPEG 2000.
OTHER_IMAGE = re.compile(
    rb"GIF8|BM.{4}\0{4}|II\*\0|MM\0\*|RIFF.{4}WEBP|.{4}ftyp(avi[fs]|hei[cfx]|mif1|msf1)|\xff\x0a|\0\0\0\x0c(JXL|jP) ",
    re.DOTALL,
)
START_BYTES = 16


class Pictures(NamedTuple):
    """JPEG and PNG files, the number of other files, and image files that cannot be fed (`faults`)."""

    files: list[Path]
    others: int
    faults: list[Fault]


def visible(root: Path) -> list[Path]:
    """Return all files below a folder, sorted, except those with a hidden name in their path.

    Links to folders are followed. Raises DataError when two paths lead to one folder (as in a loop of links), or when a
    folder cannot be read.
    """
    files: list[Path] = []
    try:
        reached = {_identity(parent): str(parent) for parent in root.resolve().parents}
        for folder, folders, names in os.walk(root, followlinks=True, onerror=_fail):
            if (first := reached.setdefault(_identity(folder), folder)) != folder:
                raise DataError(
                    f"{folder} and {first} are the same folder; remove the link, so that each image is fed once"
                )
            folders[:] = [name for name in sorted(folders) if not name.startswith(HIDDEN)]
            files += [Path(folder, name) for name in names if not name.startswith(HIDDEN)]
    except OSError as error:
        raise DataError(f"the folder {error.filename} cannot be read ({error.strerror})") from None
    return sorted(files)


def pictures(root: Path, files: Iterable[Path]) -> Pictures:
    """Find the images among files by their first bytes, not by their names.

    A fault is a file that cannot be read, has another image format, or has the suffix of an image format but is not an
    image.
    """
    found = Pictures([], 0, [])
    others = 0
    for file in files:
        try:
            start = _start(file)
        except OSError as error:
            found.faults.append(Fault(place(file, root), f"cannot be read ({error.strerror})"))
            continue
        if start.startswith(images.STARTS):
            found.files.append(file)
        elif file.suffix.lower() in IMAGE_SUFFIXES or OTHER_IMAGE.match(start):
            found.faults.append(Fault(place(file, root), NOT_AN_IMAGE))
        else:
            others += 1
    return found._replace(others=others)


def read(file: Path) -> bytes:
    """Read a file. Raises DataError."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} can no longer be read ({error.strerror})") from None


def place(path: Path, root: Path) -> str:
    """Return a path relative to the data set's folder, for messages and ids."""
    return path.relative_to(root).as_posix()


def _identity(folder: Path | str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _fail(error: OSError) -> None:
    raise error


def _start(file: Path) -> bytes:
    """Return a file's first bytes. Return b"" for a pipe or a device, because a read could block. Raises OSError."""
    if not stat.S_ISREG(file.stat().st_mode):
        return b""
    with file.open("rb", buffering=0) as opened:
        return opened.read(START_BYTES)
