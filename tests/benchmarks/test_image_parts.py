from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import images


def test_folders_named_train_and_test_are_the_parts(tmp_path: Path):
    for part, count in (("train", 3), ("test", 1)):
        for label in ("cat", "dog"):
            (tmp_path / part / label).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (9, 9)).save(tmp_path / part / label / f"{number}.png")
    train, test = images.open_parts(tmp_path)
    assert (len(train), len(test)) == (6, 2)
    assert train.labels == test.labels == ["cat", "dog"]


def test_without_a_test_part_a_sixth_of_each_class_is_it():
    train, test = images.open_parts(None)
    assert not set(train.ids) & set(test.ids)
    assert len(train) + len(test) == 1797
    assert set(Counter(test.targets).values()) <= {29, 30, 31}


def test_a_part_that_has_nothing_beside_it_is_divided(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for number in range(12):
        (tmp_path / "test" / "cat").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9)).save(tmp_path / "test" / "cat" / f"{number}.png")
    train, test = images.open_parts(tmp_path)
    assert (len(train), len(test)) == (10, 2)
    assert "there is one part in" in capsys.readouterr().err


def test_a_subset_keeps_image_label_and_id_together():
    train, _ = images.open_parts(None)
    chosen = images.subset(train, np.array([5, 2]))
    assert list(chosen) == [train[5], train[2]]
