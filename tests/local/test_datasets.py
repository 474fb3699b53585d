import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_files import encoded, write_parquet
from PIL import Image

from stream_learner.errors import DataError
from stream_learner.local.datasets import Dataset, NoTestSplitError, open_dataset


def splits(data: Dataset) -> dict[str, str | None]:
    return {example.id: example.split for example in data}


def test_digits():
    digits = open_dataset(None)
    assert (len(digits), digits.labels, digits.is_digits) == (1797, list("0123456789"), True)
    assert (digits.height, digits.width, digits.channels) == (8, 8, 1)
    assert len(set(digits.ids)) == 1797
    first = next(iter(digits))
    assert (first.label, first.id) == ("0", "digits/0")
    pixels = np.asarray(Image.open(io.BytesIO(first.image)))
    assert pixels.dtype == np.uint8
    # 13 of 16 in the original.
    assert pixels[0, 3] == round(13 * 255 / 16)


def test_parquet_with_the_class_names_of_hugging_face(tmp_path: Path):
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    images = write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", [1, 0, 1], metadata=metadata)
    images += write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", [0], metadata=metadata)
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", [0, 1], metadata=metadata)
    data = open_dataset(tmp_path)
    assert (data.name, data.labels, data.targets) == (tmp_path.name, ["cat", "dog"], [1, 0, 1, 0])
    assert data.named
    assert [example.image for example in data] == images
    assert [example.label for example in data] == ["dog", "cat", "dog", "cat"]
    assert data.ids[-1] == "data/train-00001-of-00002.parquet/0"
    assert (data.height, data.width, data.channels) == (4, 6, 3)
    assert len(open_dataset(tmp_path, "test")) == 2
    assert len(open_dataset(tmp_path, "all")) == 6


def test_parquet_with_class_names_in_its_own_metadata(tmp_path: Path):
    write_parquet(tmp_path / "a.parquet", [1, 0], column="img", metadata={"classes": '["cat", "dog"]'}, mode="L")
    data = open_dataset(tmp_path)
    assert [example.label for example in data] == ["dog", "cat"]
    assert data.channels == 1


def test_files_of_two_configurations_are_told_apart(tmp_path: Path):
    write_parquet(tmp_path / "a" / "train.parquet", [0], metadata={"classes": '["cat", "dog"]'})
    write_parquet(tmp_path / "b" / "train.parquet", [0], metadata={"classes": '["one", "two"]'})
    with pytest.raises(
        DataError, match=r"b/train.parquet has different classes from .*a/train.parquet; give a folder with"
    ):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path / "b").labels == ["one", "two"]


def test_parquet_without_class_names(tmp_path: Path):
    write_parquet(tmp_path / "a.parquet", [10, 9, 10])
    data = open_dataset(tmp_path)
    assert (data.labels, data.targets) == (["9", "10"], [1, 0, 1])
    assert not data.named


def test_class_folders(tmp_path: Path):
    for name, format in (("b/2.PNG", "PNG"), ("b/10.jpg", "JPEG"), ("a/1.jpeg", "JPEG")):  # noqa: A001
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded(0, width=200, height=100, format=format))
    (tmp_path / "a" / "._1.jpeg").write_bytes(b"a Mac's")
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    data = open_dataset(tmp_path)
    assert (data.labels, data.ids) == (["a", "b"], ["a/1.jpeg", "b/10.jpg", "b/2.PNG"])
    assert data.skipped == 1
    assert data[2] == ((tmp_path / "b" / "2.PNG").read_bytes(), "b", "b/2.PNG", None)
    assert (data.height, data.width, data.channels) == (64, 64, 3)
    with pytest.raises(NoTestSplitError):
        open_dataset(tmp_path, "test")


def test_class_folders_in_parts(tmp_path: Path):
    for name in (
        "train/test/1.png",
        "train/val/2.png",
        "valid/val/3.png",
        "train/.cache/4.png",
        "__MACOSX/train/val/5.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encoded(0))
    data = open_dataset(tmp_path)
    assert (data.labels, data.ids) == (["test", "val"], ["train/test/1.png", "train/val/2.png"])
    assert open_dataset(tmp_path, "test").ids == ["valid/val/3.png"]
    assert splits(open_dataset(tmp_path, "all")) == {
        "train/test/1.png": None,
        "train/val/2.png": None,
        "valid/val/3.png": "validation",
    }


@pytest.mark.parametrize(
    ("train", "test", "other"),
    [
        ("train/0000.parquet", "test/0000.parquet", "extra/0000.parquet"),
        ("digits/partial-train/0.parquet", "digits/partial-test/0.parquet", "digits/partial-validation/0.parquet"),
        ("mine-Train.parquet", "mine-Test.parquet", "mine-Val.parquet"),
        ("training_1.parquet", "valid_1.parquet", "strain_1.parquet"),
        ("test-data/train.parquet", "test-data/test.parquet", "test-data/dev.parquet"),
        ("a.parquet", "a-test.parquet", None),
    ],
)
def test_parquet_files_say_their_split(tmp_path: Path, train: str, test: str, other: str | None):
    for index, name in enumerate(name for name in (train, test, other) if name):
        write_parquet(tmp_path / name, [index] * 2)
    assert open_dataset(tmp_path).ids == [f"{train}/0", f"{train}/1"]
    assert splits(open_dataset(tmp_path, "test")) == {f"{test}/0": "test", f"{test}/1": "test"}
    assert len(open_dataset(tmp_path, "all")) == (6 if other else 4)


@pytest.mark.parametrize("part", ["test", "validation"])
def test_a_part_alone_is_any_split(tmp_path: Path, part: str):
    write_parquet(tmp_path / f"{part}.parquet", [0, 1])
    for data, held_out in (
        (open_dataset(tmp_path), None),
        (open_dataset(tmp_path, "test"), "test"),
        (open_dataset(tmp_path, "all"), None),
    ):
        assert splits(data) == {f"{part}.parquet/0": held_out, f"{part}.parquet/1": held_out}


def test_all_parts_are_held_out_for_what_they_say(tmp_path: Path):
    for part in ("train", "test", "dev", "extra"):
        write_parquet(tmp_path / f"{part}.parquet", [0])
    assert splits(open_dataset(tmp_path, "all")) == {
        "dev.parquet/0": "validation",
        "extra.parquet/0": None,
        "test.parquet/0": "test",
        "train.parquet/0": None,
    }
    assert set(splits(open_dataset(tmp_path)).values()) == {None}


def test_a_validation_part_is_learned_where_there_is_only_a_test_part_beside_it(tmp_path: Path):
    for part in ("test", "validation"):
        write_parquet(tmp_path / f"{part}.parquet", [0, 1])
    assert open_dataset(tmp_path).ids == ["validation.parquet/0", "validation.parquet/1"]
    assert open_dataset(tmp_path, "test").ids == ["test.parquet/0", "test.parquet/1"]


@pytest.mark.parametrize(
    "astray", ["train/cat/thumbs/1.png", "training/images/cat/1.png", "animals/cat/1.png", "1.png", "train/1.png"]
)
def test_images_in_no_classs_folder_are_refused(tmp_path: Path, astray: str):
    for name in ("train/cat/1.png", "test/cat/2.png", astray):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encoded(0))
    for split in ("train", "test", "all"):
        with pytest.raises(DataError, match=f"images such as .*{astray} \\(1 in total\\) are not in a class folder"):
            open_dataset(tmp_path, split)


@pytest.mark.parametrize(
    ("names", "astray"),
    [
        (["train/1.png", "test/2.png"], ["train/1.png", "test/2.png"]),
        (["train/1.png", "test/cat/2.png"], ["train/1.png"]),
        (["train/1.png", "car/2.png"], []),  # a class of its own
        (["train/dev/1.png", "test/car/2.png"], []),
    ],
)
def test_a_folder_that_says_a_part_is_a_class_among_others_alone(tmp_path: Path, names: list[str], astray: list[str]):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encoded(0))
    if not astray:
        assert len(open_dataset(tmp_path, "all")) == 2
        return
    with pytest.raises(DataError, match=f"{len(astray)} in total\\) are not in a class folder"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("name", ["img", "image"])
def test_of_several_columns_of_images_the_one_that_is_called_so_is_taken(tmp_path: Path, name: str):
    mask, image = ([{"bytes": encoded(value), "path": None}] for value in (0, 1))
    pq.write_table(pa.table({"a_mask": mask, name: image, "mask": mask, "label": [0]}), tmp_path / "a.parquet")
    assert open_dataset(tmp_path)[0].image == encoded(1)


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(len(encoded(0)))], ids=str
)
def test_images_as_bytes_of_any_kind(tmp_path: Path, kind: pa.DataType):
    images = pa.array([{"bytes": encoded(0)}], pa.struct([("bytes", kind)]))
    pq.write_table(pa.table({"image": images, "label": [0]}), tmp_path / "a.parquet")
    assert open_dataset(tmp_path)[0].image == encoded(0)


@pytest.mark.parametrize("label", ["fine_label", "labels"])
def test_other_names_of_the_columns(tmp_path: Path, label: str):
    features = {label: {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"pic": [{"bytes": encoded(0), "path": None}], label: [1], "coarse_label": [0]})
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "a.parquet")
    assert [example.label for example in open_dataset(tmp_path)] == ["dog"]


def test_labels_that_are_text_are_names_themselves(tmp_path: Path):
    metadata = {"classes": '["cat", "dog"]'}
    write_parquet(tmp_path / "a.parquet", ["dog", "00", "0"], metadata=metadata)
    assert open_dataset(tmp_path).labels == ["0", "00", "dog"]


def test_labels_of_several_types(tmp_path: Path):
    write_parquet(tmp_path / "a.parquet", [1])
    write_parquet(tmp_path / "b.parquet", ["1"])
    with pytest.raises(DataError, match=r"several types \(int, str\); convert them to one type"):
        open_dataset(tmp_path)


def test_no_such_folder(tmp_path: Path):
    with pytest.raises(
        DataError, match=r"there is no folder .*nowhere; a data set is a folder of Hugging Face parquet"
    ):
        open_dataset(tmp_path / "nowhere")


def test_an_empty_folder(tmp_path: Path):
    with pytest.raises(DataError, match=r"there is no image .*; a data set is a folder"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    "columns",
    [
        {"text": ["a"], "label": [1]},
        {"image": [{"bytes": b"x", "path": None}]},
        {"image": [b"x"], "label": [1]},
        {"image": [{"file": "x"}], "label": [1]},
        {"image": [{"bytes": "text"}], "label": [1]},
        {"image": [{"bytes": b"x", "path": None}], "label": [[1, 2]]},
    ],
    ids=["no image", "no label", "plain bytes", "no bytes in the image", "text for bytes", "several labels"],
)
def test_parquet_with_other_columns(tmp_path: Path, columns: dict):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet is not in the image layout \(.*label.*\); a data set"):
        open_dataset(tmp_path)


def test_parquet_that_is_none(tmp_path: Path):
    (tmp_path / "a.parquet").write_bytes(b"something else entirely")
    with pytest.raises(DataError, match=r"a\.parquet is not in the image layout"):
        open_dataset(tmp_path)


def test_no_test_files(tmp_path: Path):
    write_parquet(tmp_path / "train-0.parquet", [0])
    with pytest.raises(NoTestSplitError, match=r"there is no test split in .*: no file or folder has `test`"):
        open_dataset(tmp_path, "test")
