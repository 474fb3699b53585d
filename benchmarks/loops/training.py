"""Model, training step and replay buffer of the loops, as users would write them."""

import argparse
import io
import random
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

CLASSES = 10
CAPACITY = 10_000
PRINT_EVERY = 10  # batches


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("bootstrap", "topic", "group"):
        parser.add_argument(name)
    parser.add_argument("model", choices=MODELS)
    for name in ("side", "channels", "batch"):
        parser.add_argument(name, type=int)
    parser.add_argument("--replay", type=int, default=0, help="images from a buffer in each step")
    return parser.parse_args()


def decode(value: Any, channels: int) -> np.ndarray:
    """Return uint8 pixels [C, H, W]."""
    image = np.asarray(Image.open(io.BytesIO(value)).convert("L" if channels == 1 else "RGB"))
    return image[None] if channels == 1 else image.transpose(2, 0, 1)


def label(headers: Any) -> int:
    return int(dict(headers)["label"])


def mlp(side: int, channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * side**2, 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, CLASSES),
    )


def cnn(side: int, channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * ((side - 2) // 2) ** 2, 128),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(128, CLASSES),
    )


MODELS = {"mlp": mlp, "cnn": cnn}


class Buffer:
    """A uniform sample of all images so far (reservoir sampling, Vitter 1985)."""

    def __init__(self) -> None:
        self.images: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.seen = 0

    def draw(self, size: int) -> tuple[Tensor, Tensor]:
        indices = random.choices(range(len(self.images)), k=size)
        return torch.stack([self.images[i] for i in indices]), torch.stack([self.labels[i] for i in indices])

    def add(self, images: Tensor, labels: Tensor) -> None:
        for image, target in zip(images, labels, strict=True):
            self.seen += 1
            if len(self.images) < CAPACITY:
                self.images.append(image)
                self.labels.append(target)
            elif (place := random.randrange(self.seen)) < CAPACITY:
                self.images[place], self.labels[place] = image, target


class Training:
    """Trains a model with Adam, and prints how many records it has learned."""

    def __init__(self, options: argparse.Namespace):
        self.model = MODELS[options.model](options.side, options.channels)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.criterion = nn.CrossEntropyLoss()
        self.buffer = Buffer()
        self.replay = options.replay
        self.records = self.batches = 0

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Learn images uint8 [N, C, H, W] with class indices [N], and images from the buffer."""
        inputs, targets = images, labels
        if self.replay and self.buffer.seen:
            replayed = self.buffer.draw(self.replay)
            inputs, targets = torch.cat([images, replayed[0]]), torch.cat([labels, replayed[1]])
        self.optimizer.zero_grad()
        loss = self.criterion(self.model((inputs.float() / 255 - 0.5) / 0.25), targets)
        loss.backward()
        self.optimizer.step()
        if self.replay:
            self.buffer.add(images, labels)
        self.records += len(images)
        self.batches += 1
        if self.batches % PRINT_EVERY == 0:
            print(self.records, f"loss {loss.item():.3f}", flush=True)
