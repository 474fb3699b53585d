"""Open data sets on disk: labelled, encoded images that can be fed to a topic."""

import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from PIL import Image

from stream_learner.contract.vocabulary import Split
from stream_learner.errors import DataError
from stream_learner.formats import images
from stream_learner.formats.images import Header
from stream_learner.formats.record import RejectError
from stream_learner.local import extra, files, labelling, parquet
from stream_learner.local.faults import Fault, refuse
from stream_learner.local.labelling import Labelled

LAYOUTS = (
    "a data set is a folder of Hugging Face parquet files (a column of images, and `label`) or a folder with one "
    "folder of JPEG or PNG images for each class; it may be divided into parts such as `train` and `test`"
)
PARTS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
}
DIGITS = "handwritten digits"
SAMPLED_IMAGES = 100
MAX_MODEL_PX = 64

SplitName = Literal["train", "test", "all"]


class NoTestSplitError(DataError):
    """Error for a data set without a test split."""


class Example(NamedTuple):
    """An encoded image (JPEG or PNG), its label, and an id that is unique and stable within its data set.

    `split` is the held-out split of the example, or None if the worker should decide.
    """

    image: bytes
    label: str
    id: str
    split: Split | None = None


@dataclass(frozen=True)
class Dataset:
    """Examples in a fixed order. `dataset[i]` reads one image; everything else is in memory.

    `labels` are the classes in the data set's order. `named` is true if the data set has a list of class names, and
    false if the labels are numbers or names of folders. `targets` holds the index into `labels` of each example.
    `height`, `width` (px) and `channels` suit a model for these images. `skipped` counts files that are not images.
    `held_out` maps the index of each example in a test or validation part to its split.
    """

    name: str
    labels: list[str]
    named: bool
    targets: list[int]
    ids: list[str]
    height: int
    width: int
    channels: Literal[1, 3]
    read: Callable[[int], bytes]
    skipped: int = 0
    held_out: Mapping[int, Split] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        label = self.labels[self.targets[index]]
        return Example(self.read(index), label, self.ids[index], self.held_out.get(index))

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    @property
    def beside(self) -> str:
        """Note about skipped files, for messages about the images."""
        return f" ({self.skipped:,} other file{'s' if self.skipped > 1 else ''} skipped)" if self.skipped else ""

    @property
    def is_digits(self) -> bool:
        return self.name == DIGITS


def open_dataset(path: Path | None, split: SplitName = "train") -> Dataset:
    """Open the data set in a folder, or scikit-learn's handwritten digits without a folder.

    `split` chooses files by the words `train`, `test` and `validation` (or `valid`, `val`, `dev`) in their names and in
    the names of the folders around them, except class folders. The training files are the files with `train`. If no
    name has `train`, they are the files without any of these words, or else with `validation`, or else with `test`. The
    test files are the files with `test`, or else with `validation`. With `all`, other files with `test` or `validation`
    than the training files are held out for the split of this name.

    Images in class folders are read when they are needed. Parquet files are read at once. Raises NoTestSplitError when
    `test` is chosen and there are no test files, DataError, UsageError.
    """
    if path is None:
        if split == "test":
            raise NoTestSplitError(f"{DIGITS} have no test split of their own")
        return _digits()
    if not os.path.isdir(path):  # Path.is_dir raises if a folder above it cannot be read
        raise DataError(f"there is no folder {path}; {LAYOUTS}")
    visible = files.visible(path)
    if tables := [file for file in visible if file.suffix.lower() == ".parquet"]:
        return _parquet(path, _of_split({file: file.relative_to(path).parts for file in tables}, path, split))
    found = files.pictures(path, visible)
    if astray := _astray(path, found.files):
        raise DataError(
            f"images such as {astray[0]} ({len(astray)} in total) are not in a class folder. Class folders must be "
            f"directly in {path}, or in folders with the name of a part, such as `train`. Move or remove "
            "these images, or give the folder that holds the class folders"
        )
    chosen = _of_split({file: file.relative_to(path).parts[:-2] for file in found.files}, path, split)
    return _class_folders(path, chosen, found)


def _astray(root: Path, pictures: Sequence[Path]) -> list[Path]:
    """Return the images that are not directly in a class folder.

    A class folder is in the root, or in a folder named after a part, such as `train`.
    """
    placed = {p for p in pictures if all(_part((name,)) for name in p.relative_to(root).parts[:-2])}
    folders = {picture.parent for picture in placed} - {root}
    flat = {folder for folder in folders if folder.parent == root and _part((folder.name,))}
    # `train` may be the name of a class, but only if there are other classes and no folders of parts.
    above = {root, *(flat if flat == folders or any(folder.parent != root for folder in folders) else ())}
    return [picture for picture in pictures if picture not in placed or picture.parent in above]


def _digits() -> Dataset:
    """Load the test set of the Optical Recognition of Handwritten Digits data (UCI): 1,797 images of 8 x 8 pixels."""
    with extra("demo"):
        from sklearn.datasets import load_digits

    digits: Any = load_digits()
    pictures = [_png(pixels) for pixels in (digits.images * 255 / 16).round().astype("uint8")]
    ids = [f"digits/{index}" for index in range(len(pictures))]
    names = [str(name) for name in digits.target_names]
    return _dataset(DIGITS, Labelled(names, True, digits.target.tolist(), []), ids, pictures.__getitem__)


def _png(pixels_HW: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels_HW).save(file, "PNG")
    return file.getvalue()


def _of_split(told_by: dict[Path, tuple[str, ...]], root: Path, split: SplitName) -> dict[Path, Split | None]:
    """Return the files of a split, each with its held-out split. `told_by` holds the names that show a file's part."""
    part_of = {file: _part(names) for file, names in told_by.items()}
    parts = set(part_of.values())
    train = parts & {"train"} or parts & {None} or parts & {"validation"} or parts
    test = parts & {"test"} or parts & {"validation"}
    if split == "test" and not test:
        raise NoTestSplitError(f"there is no test split in {root}: no file or folder has `test` in its name")
    wanted: dict[str | None, Split | None] = {
        "train": dict.fromkeys(train),
        "test": dict.fromkeys(test, Split.TEST),
        "all": {part: Split(part) if part and part not in train else None for part in parts},
    }[split]
    return {file: wanted[part] for file, part in part_of.items() if part in wanted}


def _part(names: tuple[str, ...]) -> str | None:
    """Return the part of the data set that the names show, or None. The innermost name that shows a part decides."""
    for name in reversed(names):
        for word in re.split("[^a-z]+", name.lower()):
            if word in PARTS:
                return PARTS[word]
    return None


def _parquet(root: Path, tables: dict[Path, Split | None]) -> Dataset:
    rows = parquet.read(root, list(tables), LAYOUTS)
    labelled = labelling.classify(root, rows.values, rows.ids, rows.names)
    encoded: list[bytes] = []
    faults: list[Fault] = []
    for place, image in zip(rows.ids, rows.images, strict=True):
        if image and image.startswith(images.STARTS):
            encoded.append(image)
        else:
            faults.append(Fault(place, f"the image is {files.NOT_AN_IMAGE}" if image else "there are no image bytes"))
    refuse(root, (*labelled.faults, *faults))
    splits = [tables[file] for file in rows.files]
    return _dataset(root.resolve().name, labelled, rows.ids, encoded.__getitem__, splits)


def _class_folders(root: Path, chosen: dict[Path, Split | None], found: files.Pictures) -> Dataset:
    pictures = list(chosen)
    # As bytes, so that a folder name that is not UTF-8 is refused like a label that is not UTF-8.
    classes = [picture.parent.name.encode(errors="surrogateescape") for picture in pictures]
    folders = [files.place(picture.parent, root) for picture in pictures]
    labelled = labelling.classify(root, classes, folders, None)
    refuse(root, (*labelled.faults, *found.faults))
    ids = [files.place(picture, root) for picture in pictures]
    return _dataset(
        root.resolve().name, labelled, ids, lambda index: files.read(pictures[index]), chosen.values(), found.others
    )


def _dataset(
    name: str,
    labelled: Labelled,
    ids: list[str],
    read: Callable[[int], bytes],
    splits: Iterable[Split | None] = (),
    skipped: int = 0,
) -> Dataset:
    sample = [read(index) for index in range(0, len(ids), max(1, len(ids) // SAMPLED_IMAGES))]
    headers = [found for found in map(_header, sample) if found]
    if not headers:
        beside = f" (it holds {skipped:,} other files)" if skipped else ""
        raise DataError(f"there is no image in {name} that can be opened{beside}; {LAYOUTS}")
    (height, width), _ = Counter(found[:2] for found in headers).most_common(1)[0]
    channels = 1 if all(found.grey for found in headers) else 3
    size = min(height, MAX_MODEL_PX), min(width, MAX_MODEL_PX)
    held_out = {index: split for index, split in enumerate(splits) if split}
    return Dataset(
        name, labelled.labels, labelled.named, labelled.targets, ids, *size, channels, read, skipped, held_out
    )


def _header(image: bytes) -> Header | None:
    try:
        return images.header(image)
    except RejectError:
        return None
