"""Labelled images on disk, still encoded: what a laptop can feed to a topic."""

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from PIL import Image

from stream_learner.errors import DataError
from stream_learner.local import extra
from stream_learner.records.images import Header, header
from stream_learner.records.record import RejectError

LAYOUTS = (
    "a data set is a folder of Hugging Face parquet files (a column of images, and `label`) or a folder with one "
    "folder of JPEG or PNG images for each class, each in parts `train` and `test` or in one"
)
IMAGES = ("img", "image")
LABELS = ("label", "fine_label", "labels")
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
SUFFIXES = (".jpg", ".jpeg", ".png")
OTHER_SUFFIXES = (".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic")
SAMPLED_IMAGES = 100
MAX_MODEL_PX = 64

SplitName = Literal["train", "test", "all"]


class NoTestSplitError(DataError):
    """A data set has no images set apart for the test."""


class Example(NamedTuple):
    """An encoded image (JPEG or PNG), its label, and an id that is unique and stable within its data set."""

    image: bytes
    label: str
    id: str


@dataclass(frozen=True)
class Dataset:
    """Examples in a fixed order; `dataset[i]` reads the image of one, all else is at hand.

    `labels` are the classes in their own order, `named` where they came with the data, and are not its numbers or
    folders; `targets` the index into them of each example. `height`, `width` (px)
    and `channels` suit a model for these images.
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

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Example:
        return Example(self.read(index), self.labels[self.targets[index]], self.ids[index])

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    @property
    def is_digits(self) -> bool:
        return self.name == DIGITS


def open_dataset(path: Path | None, split: SplitName = "train") -> Dataset:
    """The data set in a folder, or scikit-learn's handwritten digits when there is none.

    `split` chooses among the files by the words `train`, `test` and `validation` (or `valid`, `val`, `dev`) in their
    names and in those of the folders around them, a class's own folder apart. Where none says `train`, those that say
    nothing are that, or else `validation`, or else `test`; where none says `test`, those of `validation` are. Images of
    class folders are read when they are asked for, those of parquet files at once. Raises NoTestSplitError when there
    is neither, DataError, UsageError.
    """
    if path is None:
        if split == "test":
            raise NoTestSplitError(f"{DIGITS} have no test split of their own")
        return _digits()
    if not path.is_dir():
        raise DataError(f"there is no folder {path}; {LAYOUTS}")
    if parquet_files := _visible(path, "*.parquet"):
        return _parquet(path, _of_split({file: file.relative_to(path).parts for file in parquet_files}, path, split))
    files = _visible(path, "*")
    if others := [file for file in files if file.suffix.lower() in OTHER_SUFFIXES]:
        raise DataError(f"{len(others)} files such as {others[0]} are neither JPEG nor PNG: convert or remove them")
    pictures = [file for file in files if file.suffix.lower() in SUFFIXES]
    if astray := _astray(path, pictures):
        raise DataError(
            f"images such as {astray[0]}, {len(astray)} in all, are in no class's folder: classes' folders are in "
            f"{path} itself or in folders that say a part, such as `train`; move the images, remove them, or name the "
            "folder above the classes"
        )
    return _class_folders(path, _of_split({file: file.relative_to(path).parts[:-2] for file in pictures}, path, split))


def _astray(root: Path, pictures: Sequence[Path]) -> list[Path]:
    """Those beside classes' folders, or deeper than these: a class's folder is in the root, or in one that says a
    part."""
    placed = {p for p in pictures if all(_part((name,)) for name in p.relative_to(root).parts[:-2])}
    folders = {picture.parent for picture in placed} - {root}
    flat = {folder for folder in folders if folder.parent == root and _part((folder.name,))}
    # A class may well be called `train`, among others, but not where classes are in parts or nothing else is there.
    above = {root, *(flat if flat == folders or any(folder.parent != root for folder in folders) else ())}
    return [picture for picture in pictures if picture not in placed or picture.parent in above]


def _digits() -> Dataset:
    """The test set of the Optical Recognition of Handwritten Digits data (UCI): 1,797 of 8 x 8 pixels."""
    with extra("demo"):
        from sklearn.datasets import load_digits

    digits: Any = load_digits()
    images = [_png(pixels) for pixels in (digits.images * 255 / 16).round().astype("uint8")]
    ids = [f"digits/{index}" for index in range(len(images))]
    names = [str(name) for name in digits.target_names]
    return _dataset(DIGITS, names, digits.target.tolist(), ids, images.__getitem__)


def _png(pixels_HW: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels_HW).save(file, "PNG")
    return file.getvalue()


def _of_split(told_by: dict[Path, tuple[str, ...]], root: Path, split: SplitName) -> list[Path]:
    """Those of a split, by the names that tell of each file."""
    part_of = {file: _part(names) for file, names in told_by.items()}
    parts = set(part_of.values())
    train = parts & {"train"} or parts & {None} or parts & {"validation"} or parts
    test = parts & {"test"} or parts & {"validation"}
    if split == "test" and not test:
        raise NoTestSplitError(f"there is no test split in {root}: no file or folder has `test` in its name")
    wanted = {"train": train, "test": test, "all": parts}[split]
    return [file for file, part in part_of.items() if part in wanted]


def _part(names: tuple[str, ...]) -> str | None:
    """What the innermost name says that has a word for it."""
    for name in reversed(names):
        for word in re.split("[^a-z]+", name.lower()):
            if word in PARTS:
                return PARTS[word]
    return None


def _parquet(root: Path, files: list[Path]) -> Dataset:
    """The image layout of Hugging Face's `datasets` library."""
    with extra("demo"):
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

    images: list[bytes] = []
    values: list[Any] = []
    ids: list[str] = []
    names: list[str] | None = None
    for file in files:
        try:
            schema = pq.read_schema(file)
            image, label = _columns(schema)
            table = pq.read_table(file, columns=[image, label])
            images += pc.struct_field(table[image], "bytes").to_pylist()  # pyright: ignore[reportAttributeAccessIssue]
            values += table[label].to_pylist()
        except (ValueError, OSError, pa.ArrowException) as error:
            raise DataError(f"{file} is not in the image layout ({error}); {LAYOUTS}") from None
        own = _class_names(schema.metadata or {}, label)
        if names and own and own != names:
            raise DataError(f"{file} has other classes than {files[0]}; name the folder of one configuration alone")
        names = names or own
        ids += [f"{file.relative_to(root).as_posix()}/{row}" for row in range(len(table))]
    if len(kinds := {type(value).__name__ for value in values if value is not None}) > 1:
        raise DataError(f"the labels in {root} are of several types ({', '.join(sorted(kinds))}); make them of one")
    names = names if int in map(type, values) else None  # what is text is a name already
    for place, image, value in zip(ids, images, values, strict=True):
        if image is None or value is None or (names and not 0 <= value < len(names)):
            raise DataError(f"{place} has no {'image bytes' if image is None else 'known label'}; leave such rows out")
    return _dataset(root.resolve().name, names, values, ids, images.__getitem__)


def _columns(schema: Any) -> tuple[str, str]:
    """Names of the columns of images, `img` and `image` before others, and of labels. Raises ValueError when there is
    none."""
    import pyarrow as pa

    structs = [field for field in schema if pa.types.is_struct(field.type)]
    images = [field.name for field in structs if field.type.get_field_index("bytes") >= 0]
    images.sort(key=lambda name: name not in IMAGES)
    labels = [name for name in LABELS if name in schema.names]
    if not (images and labels):
        missing = f"none is {' or '.join(LABELS)}" if images else "none has structs with a field `bytes`"
        raise ValueError(f"of its columns {', '.join(schema.names)} {missing}")
    if pa.types.is_nested(schema.field(labels[0]).type):
        raise ValueError(f"`{labels[0]}` has several labels for an image")
    return images[0], labels[0]


def _class_names(metadata: dict[bytes, bytes], label: str) -> list[str] | None:
    """Names of the integer labels, where a parquet file's schema knows them."""
    if b"huggingface" in metadata:
        features = json.loads(metadata[b"huggingface"]).get("info", {}).get("features", {})
        return features.get(label, {}).get("names")
    return json.loads(metadata.get(b"classes", b"null"))


def _class_folders(root: Path, files: list[Path]) -> Dataset:
    ids = [file.relative_to(root).as_posix() for file in files]
    classes = [file.parent.name for file in files]
    return _dataset(root.resolve().name, None, classes, ids, lambda index: files[index].read_bytes())


def _dataset(
    name: str, labels: list[str] | None, values: list[Any], ids: list[str], read: Callable[[int], bytes]
) -> Dataset:
    """`values` are indices into `labels`, or, where there are none, what makes them: its text, in its order."""
    named = labels is not None
    if labels is None:
        known = sorted(set(values))
        index = {value: position for position, value in enumerate(known)}
        labels, values = [str(value) for value in known], [index[value] for value in values]
    sample = [read(index) for index in range(0, len(ids), max(1, len(ids) // SAMPLED_IMAGES))]
    headers = [found for found in map(_header, sample) if found]
    if not headers:
        raise DataError(f"there is no image in {name} that can be opened; {LAYOUTS}")
    (height, width), _ = Counter(found[:2] for found in headers).most_common(1)[0]
    grey = all(found.grey for found in headers)
    size = min(height, MAX_MODEL_PX), min(width, MAX_MODEL_PX)
    return Dataset(name, labels, named, values, ids, *size, 1 if grey else 3, read)


def _visible(root: Path, pattern: str) -> list[Path]:
    """Sorted, without what is hidden, such as files that a Mac leaves in archives."""
    hidden = (".", "__MACOSX")
    found = root.rglob(pattern)
    return sorted(f for f in found if not any(name.startswith(hidden) for name in f.relative_to(root).parts))


def _header(image: bytes) -> Header | None:
    try:
        return header(image)
    except RejectError:
        return None
