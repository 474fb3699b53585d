"""Learn encoded images in memory with Avalanche (Lomonaco et al. 2021) and Pillow.

It runs in an environment of its own, see `avalanche.in`.
"""

import argparse
import warnings

import numpy as np
import torch
from torch.utils.data import Dataset

from benchmarks.loops.training import MODELS, PRINT_EVERY, decode

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "no QP solver found")  # none is needed
    from avalanche.benchmarks import benchmark_from_datasets  # pyright: ignore[reportMissingImports]
    from avalanche.benchmarks.utils import as_classification_dataset  # pyright: ignore[reportMissingImports]
    from avalanche.core import SupervisedPlugin  # pyright: ignore[reportMissingImports]
    from avalanche.training.plugins import EvaluationPlugin  # pyright: ignore[reportMissingImports]
    from avalanche.training.supervised import Naive  # pyright: ignore[reportMissingImports]

MANY = 1_000_000


class Images(Dataset):
    def __init__(self, file: str, channels: int):
        arrays = np.load(file)
        ends = np.cumsum(arrays["lengths"])
        data = arrays["images"].tobytes()
        self.images = [data[end - length : end] for end, length in zip(ends, arrays["lengths"], strict=True)]
        self.targets = arrays["labels"].tolist()
        self.channels = channels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        pixels = torch.tensor(decode(self.images[index], self.channels))
        return (pixels.float() / 255 - 0.5) / 0.25, self.targets[index]


class Count(SupervisedPlugin):
    """Prints how many images were learned."""

    def __init__(self):
        super().__init__()
        self.records = self.batches = 0

    def after_training_iteration(self, strategy, **_: object) -> None:
        self.records += len(strategy.mb_x)
        self.batches += 1
        if self.batches % PRINT_EVERY == 0:
            print(self.records, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("model", choices=MODELS)
    for name in ("side", "channels", "batch"):
        parser.add_argument(name, type=int)
    options = parser.parse_args()
    model = MODELS[options.model](options.side, options.channels)
    strategy = Naive(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        train_mb_size=options.batch,
        train_epochs=MANY,
        evaluator=EvaluationPlugin(),
        plugins=[Count()],
    )
    images = as_classification_dataset(Images(options.file, options.channels))
    for experience in benchmark_from_datasets(train=[images]).train_stream:
        strategy.train(experience)
