"""Labels and images of data sets are read as people mean them. All faults are reported before anything is fed."""

import json
import os
import re
from datetime import date
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import encoded, write_image, write_parquet, write_rows

from stream_learner.errors import DataError
from stream_learner.formats.labels import parse_label
from stream_learner.local import demo
from stream_learner.local.datasets import NoTestSplitError, open_dataset

LATIN_1 = os.fsdecode(b"caf\xe9")
NFC, NFD = "caf\u00e9", "cafe\u0301"
WEBP = encoded(0, format="WEBP")


def refusal(path: Path, split: str = "train") -> str:
    """Open a data set that is refused, and return the message after its path."""
    with pytest.raises(DataError) as caught:
        open_dataset(path, split)  # pyright: ignore[reportArgumentType]
    return str(caught.value).removeprefix(f"{path} has ")


# Labels


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (["cat", b"dog", "cat"], ["cat", "dog", "cat"]),
        ([NFC, f" {NFD}\n", "Z"], [NFC, NFC, "Z"]),
        ([2.0, 10.0, 2.0], ["2", "10", "2"]),
        ([True, False], ["True", "False"]),
        ([np.uint64(2**64 - 1), 0], [str(2**64 - 1), "0"]),
    ],
    ids=["bytes", "normalised", "whole floats", "booleans", "64 bits unsigned"],
)
def test_labels_are_those_that_the_worker_learns(tmp_path: Path, values: list, labels: list[str]):
    for number, value in enumerate(values):  # a file each: a column has one type
        write_parquet(tmp_path / f"{number}.parquet", [value])
    data = open_dataset(tmp_path)
    assert [example.label for example in data] == labels
    assert len(data.labels) == len(set(data.labels)) == len(set(labels))
    assert all(parse_label(label.encode()) == label for label in data.labels)


def test_floats_are_indices_into_the_names_too(tmp_path: Path):
    """As pandas writes integers with a missing value, once that row is dropped."""
    write_parquet(tmp_path / "a.parquet", [1.0, 0.0], metadata={"classes": json.dumps(["cat", "dog"])})
    assert [example.label for example in open_dataset(tmp_path)] == ["dog", "cat"]


def test_categories_are_text(tmp_path: Path):
    image = pa.array([{"bytes": encoded(0)}] * 2)
    pq.write_table(
        pa.table({"image": image, "label": pa.array(["b", "a"]).dictionary_encode()}), tmp_path / "a.parquet"
    )
    assert [example.label for example in open_dataset(tmp_path)] == ["b", "a"]


def test_names_of_classes_are_normalised(tmp_path: Path):
    names = ["dog ", NFD, NFC, "\0unused"]
    write_parquet(tmp_path / "a.parquet", [2, 1, 0], metadata={"classes": json.dumps(names)})
    data = open_dataset(tmp_path)
    assert (data.labels, data.targets, data.named) == (["dog", NFC], [1, 1, 0], True)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([0.0, float("nan")], "the label nan is not a whole number"),
        ([0.0, 0.5], "the label 0.5 is not a whole number"),
        ([0.0, float("inf")], "the label inf is not a whole number"),
        (["cat", None], "the record has no label"),
        (["cat", ""], "the record has no label"),
        (["cat", " \n"], "the record has no label"),
        (["cat", "a" * 257], "the label is longer than 256 bytes of UTF-8"),
        (["cat", "c\0t"], "the label contains U+0000, a control or formatting character"),
        (["cat", "\u202ecat"], "the label contains U+202E, a control or formatting character"),
        ([b"cat", b"caf\xe9"], "the label is not UTF-8 text"),
        ([date(2020, 1, 1)] * 2, "the label is of type date, not text or an integer"),
    ],
    ids=["nan", "fraction", "inf", "null", "empty", "blank", "long", "control", "bidi", "latin-1", "date"],
)
def test_a_label_that_the_worker_would_refuse(tmp_path: Path, values: list, reason: str):
    write_parquet(tmp_path / "a.parquet", values)
    assert f"a.parquet/1: {reason}" in refusal(tmp_path)


def test_a_number_that_has_no_name(tmp_path: Path):
    write_parquet(tmp_path / "a.parquet", [0, -1, 2], metadata={"classes": '["cat", "dog"]'})
    assert refusal(tmp_path) == (
        "2 faults, so nothing is fed: a.parquet/1: the label -1 is not an index into the 2 class names; "
        "a.parquet/2: the label 2 is not an index into the 2 class names. Correct, convert or remove these"
    )


def test_all_faults_are_counted_and_the_first_are_named(tmp_path: Path):
    nan = float("nan")
    write_rows(tmp_path / "a.parquet", [encoded(0)] * 1200, [0.0] + [nan] * 1199)
    write_rows(tmp_path / "b.parquet", [encoded(0), None, b"", WEBP], [0.0] * 4)
    said = refusal(tmp_path)
    assert said.startswith("1,202 faults, so nothing is fed: a.parquet/1: ")
    assert re.findall(r"a\.parquet/(\d+)", said) == ["1", "2", "3", "4", "5"]
    assert said.endswith("; and 1,197 more. Correct, convert or remove these")
    (tmp_path / "a.parquet").unlink()
    assert "3 faults" in (said := refusal(tmp_path))
    assert "b.parquet/1: there are no image bytes; b.parquet/2: there are no image bytes" in said
    assert "b.parquet/3: the image is neither a JPEG nor a PNG" in said


@pytest.mark.parametrize(
    "metadata",
    [
        {"huggingface": "no JSON"},
        {"huggingface": "[]"},
        {"huggingface": '{"info": {"features": {"label": {"names": "cat"}}}}'},
        {"huggingface": b"\xff"},
        {"classes": '{"cat": 0}'},
        {"classes": "[0, 1]"},
    ],
)
def test_metadata_that_names_no_classes_as_it_should(tmp_path: Path, metadata: dict):
    write_parquet(tmp_path / "a.parquet", [0], metadata=metadata)
    assert "a.parquet is not in the image layout (" in refusal(tmp_path)


# Folders


def test_images_are_known_by_content_not_by_name(tmp_path: Path):
    jpeg = encoded(0, format="JPEG")
    names = ("1.jpe", "2.jfif", "3.JPG", "4", "5.txt", "6.webp", os.fsdecode(b"\xe9.jpg"))
    for name in names:
        write_image(tmp_path / "cat" / name, jpeg)
    write_image(tmp_path / "dog" / "1.jpg", encoded(0))
    data = open_dataset(tmp_path)
    assert data.ids == [*(f"cat/{name}" for name in names), "dog/1.jpg"]
    assert data.skipped == 0


@pytest.mark.parametrize("format", ["WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000"])
def test_images_in_other_formats_are_reported(tmp_path: Path, format: str):  # noqa: A002
    image = encoded(0, format=format)
    write_image(tmp_path / "cat" / "1.jpg")
    for name in ("2.jpg", "3", f"4.{format.lower()}"):
        write_image(tmp_path / "cat" / name, image)
    said = refusal(tmp_path)
    assert said.startswith("3 faults, so nothing is fed: cat/2.jpg: neither a JPEG nor a PNG; cat/3: neither")


def test_files_called_images_that_are_none_are_reported(tmp_path: Path):
    for name in ("1.jpg", "2.HEIC", "3.png"):
        write_image(tmp_path / "cat" / name, b"" if name == "3.png" else b"text")
    (tmp_path / "cat" / "4").symlink_to("nowhere")
    (tmp_path / "cat" / "5").symlink_to("5")
    said = refusal(tmp_path)
    assert said.startswith("5 faults")
    assert "cat/2.HEIC: neither a JPEG nor a PNG" in said
    assert "cat/4: cannot be read (No such file or directory)" in said
    assert "cat/5: cannot be read (" in said


def test_other_files_are_skipped_and_counted(tmp_path: Path):
    write_image(tmp_path / "cat" / "1.jpg")
    for name in ("cat/Thumbs.db", "cat/notes.txt", "README.md", "cat/empty"):
        (tmp_path / name).write_bytes(b"")
    os.mkfifo(tmp_path / "cat" / "pipe")  # nobody writes to it
    write_image(tmp_path / ".thumbnails" / "cat" / "1.png")  # hidden
    data = open_dataset(tmp_path)
    assert (data.ids, data.skipped) == (["cat/1.jpg"], 5)
    (tmp_path / "cat" / "1.jpg").unlink()
    assert "there is no image in" in (said := refusal(tmp_path))
    assert "(it holds 5 other files)" in said


def test_a_class_folder_may_be_a_link(tmp_path: Path):
    write_image(tmp_path / "elsewhere" / "kittens" / "1.png")
    write_image(tmp_path / "data" / "dog" / "2.png")
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "elsewhere" / "kittens")
    (tmp_path / "link").symlink_to("data")
    for root in (tmp_path / "data", tmp_path / "link"):
        data = open_dataset(root)
        assert (data.ids, data.labels) == (["cat/1.png", "dog/2.png"], ["cat", "dog"])


@pytest.mark.parametrize(
    "target", [".", "..", "../..", "/", "../dog"], ids=["itself", "the root", "above the root", "all", "another class"]
)
def test_a_folder_that_is_reached_twice_is_reported(tmp_path: Path, target: str):
    for label in ("cat", "dog"):
        write_image(tmp_path / "data" / label / "1.png")
    link = tmp_path / "data" / "cat" / "link"
    link.symlink_to(target)
    assert re.search(r"link(/|).* are the same folder; remove the link", refusal(tmp_path / "data"))


def test_links_that_multiply_are_followed_once(tmp_path: Path):
    """30 folders with two links each to the next one: 2^30 ways to the last."""
    folders = [tmp_path / f"{number}" for number in range(30)]
    for folder, following in pairwise(folders):
        folder.mkdir()
        for name in ("a", "b"):
            (folder / name).symlink_to(following)
    folders[-1].mkdir()
    assert "are the same folder; remove the link" in refusal(folders[0])


def test_a_folder_whose_name_is_no_utf_8_is_reported(tmp_path: Path):
    for label in ("cat", LATIN_1, "d\no"):
        for number in range(3):
            write_image(tmp_path / label / f"{number}.png")
    said = refusal(tmp_path)
    assert said.startswith("2 faults")
    assert f"{LATIN_1}: the label is not UTF-8 text" in said
    assert "the label contains U+000A" in said


def test_folders_whose_names_look_the_same_are_one_class(tmp_path: Path):
    for label in (NFC, NFD, f" {NFC}"):
        write_image(tmp_path / label / "1.png")
    data = open_dataset(tmp_path)
    assert (data.labels, data.targets) == ([NFC], [0, 0, 0])
    assert len(set(data.ids)) == 3


def test_an_image_that_goes_away_is_reported(tmp_path: Path):
    file = write_image(tmp_path / "cat" / "1.png")
    data = open_dataset(tmp_path)
    file.unlink()
    with pytest.raises(DataError, match=r"cat/1\.png can no longer be read \(No such file or directory\)"):
        _ = data[0]


def test_a_data_set_may_itself_have_a_name_that_is_no_utf_8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = tmp_path / LATIN_1
    write_image(root / "cat" / "1.png")
    data = open_dataset(root)
    assert data.name == LATIN_1
    with pytest.raises(NoTestSplitError):
        open_dataset(root, "test")
    monkeypatch.chdir(tmp_path)
    assert demo._fed_before(demo._new_run(data, root, seed=0)) == root
