"""Fixtures of the benchmarks' tests."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from digit_folders import EACH
from PIL import Image
from sklearn.datasets import load_digits


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with a training and a test part."""
    folder = tmp_path_factory.mktemp("digits")
    data: Any = load_digits()
    for label in range(10):
        for number, index in enumerate(np.flatnonzero(data.target == label)[:EACH]):
            part = "test" if number >= EACH - 4 else "train"
            file = folder / part / str(label) / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((data.images[index] * 255 / 16).astype(np.uint8)).save(file)
    return folder
