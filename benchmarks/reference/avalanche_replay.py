"""Avalanche's replay on the same stream as our learner: the reference of `benchmarks/learning.py increments`.

It runs in an environment of its own, which `make .venv/avalanche.stamp` installs, from the root of the repository:

    PYTHONPATH=. .venv/avalanche/bin/python benchmarks/reference/avalanche_replay.py --data DIR --strategy er \\
        --seed 0 --lr 0.05 --augment --bf16

Network, strategies, memory and training loop are Avalanche's (Lomonaco et al. 2021). The stream is one experience, cut
into experiences of ten images, so that no strategy knows where an increment ends. The last line is one JSON object.
`--runs` stores it next to our learner's runs, for `benchmarks/learning.py report`.
"""

import argparse
import io
import json
import logging
import math
import random
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "no QP solver found")  # none is needed
    from avalanche.benchmarks import benchmark_from_datasets, task_incremental_benchmark
    from avalanche.benchmarks.scenarios.online import split_online_stream
    from avalanche.benchmarks.utils import as_classification_dataset
    from avalanche.models import SlimResNet18
    from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
    from avalanche.training.storage_policy import ClassBalancedBuffer
    from avalanche.training.supervised import ER_ACE, Naive
    from avalanche.training.templates import SupervisedTemplate
from torchvision.transforms import v2

from benchmarks import images, runs, scores, streams
from stream_learner.local.datasets import Dataset as Files

SIDE = 32  # pixels; SlimResNet18 is made for this size
STEP = 10  # images from the stream, and as many from memory
POINT_STEPS = 475
LAST_STEPS = 100
LAST_EVERY = 10
FEW_IMAGES = 2_000  # for frequent evaluations
RUNS = Path("benchmarks/results/learning")
USUAL = {"momentum": 0.0, "weight_decay": 0.0, "memory": 1_000, "increments": 5}
WITHOUT = {"augment": "unaugmented", "bf16": "fp32"}
"""The words in the name of a run that lacks these."""

CROP, FLIP = v2.RandomCrop(SIDE, padding=4), v2.RandomHorizontalFlip()


class Shown(Dataset[tuple[Tensor, int]]):
    """Float images [3, 32, 32] and their classes, in the order of `indices`, augmented each time they are shown."""

    def __init__(self, x_NCHW: Tensor, targets: streams.Indices, indices: streams.Indices, vary: v2.Transform):
        self._x_NCHW, self._indices, self._vary = x_NCHW, indices.tolist(), vary
        self.targets = targets[indices].tolist()

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        x_CHW = self._x_NCHW[self._indices[position]]
        return self._vary(x_CHW), self.targets[position]


def decode(files: Files) -> Tensor:
    """uint8 [N, 3, 32, 32]."""
    pixels = [
        np.asarray(Image.open(io.BytesIO(files.read(index))).convert("RGB").resize((SIDE, SIDE)))
        for index in range(len(files))
    ]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()


def strategy_of(arguments: argparse.Namespace, model: torch.nn.Module) -> SupervisedTemplate:
    optimizer = torch.optim.SGD(
        model.parameters(), arguments.lr, momentum=arguments.momentum, weight_decay=arguments.weight_decay
    )
    common = {"model": model, "optimizer": optimizer, "train_mb_size": STEP, "evaluator": EvaluationPlugin()}
    if arguments.strategy == "er_ace":
        return ER_ACE(**common, mem_size=arguments.memory, batch_size_mem=STEP)
    if arguments.strategy == "er":
        memory = ClassBalancedBuffer(arguments.memory)
        return Naive(**common, plugins=[ReplayPlugin(arguments.memory, STEP, STEP, storage_policy=memory)])
    return Naive(**common)


class Evaluation:
    """Evaluation of a network on images of its own: on all of them, or on a fixed few."""

    def __init__(self, x_NCHW: Tensor, targets: streams.Indices, classes: int):
        mixed = np.random.default_rng(0).permutation(len(targets))
        self._x_NCHW, self._targets, self._classes = x_NCHW[mixed], targets[mixed], classes
        self.forwards = 0

    @torch.inference_mode()
    def point(self, model: torch.nn.Module, shown: streams.Indices, count: int | None = None) -> scores.Point:
        """Evaluate the network. `shown` are the classes of the images of the stream so far."""
        model.eval()
        predictions = [model(x_NCHW).argmax(1) for x_NCHW in self._x_NCHW[:count].split(500)]
        model.train()
        self.forwards += sum(map(len, predictions))
        seen = np.isin(np.arange(self._classes), shown)
        return scores.evaluate(torch.cat(predictions).numpy(), self._targets[:count], seen)


def steps(stream: list[streams.Indices]) -> tuple[int, set[int]]:
    """Return the number of steps in the stream, and the steps after which an increment has been learned.

    An increment that ends within a step counts as learned after the last full step.
    """
    *inner, whole = (int(images) for images in np.cumsum([len(increment) for increment in stream]))
    last = math.ceil(whole / STEP)
    return last, {images // STEP for images in inner} | {last}


def experiences(dataset: Shown) -> Iterator:
    whole = benchmark_from_datasets(train=[as_classification_dataset(dataset)])
    whole = task_incremental_benchmark(whole)  # the memories need task labels: one task per experience
    return iter(split_online_stream(whole.train_stream, STEP, shuffle=False))


class Data(NamedTuple):
    """Both parts of a data set and their classes, as indices into the labels of the training part.

    Of the training part, it has the images that are learned and those held out for validation.
    """

    train: Files
    targets: streams.Indices
    test: Files
    test_targets: streams.Indices
    learned: streams.Indices
    validation: streams.Indices


def replay(arguments: argparse.Namespace, data: Data) -> runs.Run:
    """Learn the stream with replay, and return the results and costs of the run."""
    stream = streams.increments(data.targets, data.learned, arguments.seed, arguments.increments)
    order = np.concatenate(stream)

    pixels_NCHW = decode(data.train)
    mean, std = (figure(pixels_NCHW[data.learned] / 255.0, (0, 2, 3)) for figure in (torch.mean, torch.std))
    normalize = v2.Normalize(mean.tolist(), std.tolist())
    x_NCHW = normalize(pixels_NCHW / 255.0)
    classes = len(data.train.labels)
    if arguments.validation:
        evaluation = Evaluation(x_NCHW[data.validation], data.targets[data.validation], classes)
    else:
        evaluation = Evaluation(normalize(decode(data.test) / 255.0), data.test_targets, classes)

    random.seed(arguments.seed)
    torch.manual_seed(arguments.seed)
    model = SlimResNet18(classes)
    if arguments.bf16:
        model.to(memory_format=torch.channels_last)
        model.forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
    views = 0

    def count(module: torch.nn.Module, _: tuple[Tensor, ...], logits: Tensor) -> Tensor:
        nonlocal views
        views += len(logits) if module.training else 0
        return logits.float()

    model.register_forward_hook(count)
    strategy = strategy_of(arguments, model)
    variants = [CROP, *([FLIP] if images.mirrored(data.train) else [])] if arguments.augment else [v2.Identity()]
    last_step, ends = steps(stream)
    points, curve, last = [], [], []
    seconds = 0.0
    for step, experience in enumerate(experiences(Shown(x_NCHW, data.targets, order, v2.Compose(variants))), 1):
        began_s = time.perf_counter()
        strategy.train(experience)
        seconds += time.perf_counter() - began_s
        shown = data.targets[order[: step * STEP]]
        if step in ends or step % POINT_STEPS == 0:
            points.append(evaluation.point(model, shown, None if step in ends else FEW_IMAGES))
            curve.append((step, scores.accuracy_of_seen(points[-1])))
            print(f"step {step} of {last_step}: accuracy on the classes seen {curve[-1][1]:.3f}", flush=True)
        if step > last_step - LAST_STEPS and (last_step - step) % LAST_EVERY == 0:
            last.append(evaluation.point(model, shown, FEW_IMAGES))
    return {
        **scores.summary(points, last),
        "curve": [{"records": min(step * STEP, len(order)), "accuracy": accuracy} for step, accuracy in curve],
        "views": views,
        "teacher_views": 0,
        "evaluation_views": evaluation.forwards,
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="data set, in a layout that `stream-learner feed` reads"
    )
    parser.add_argument("--strategy", choices=("er", "er_ace", "naive"), required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--momentum", type=float, default=USUAL["momentum"])
    parser.add_argument("--weight-decay", type=float, default=USUAL["weight_decay"])
    parser.add_argument(
        "--augment", action="store_true", help="crop, and flip unless classes are characters, at random"
    )
    parser.add_argument("--bf16", action="store_true", help="channels_last and bf16 autocast, as our learner does")
    parser.add_argument("--memory", type=int, default=USUAL["memory"], help="images kept")
    parser.add_argument("--increments", type=int, default=USUAL["increments"])
    parser.add_argument("--validation", action="store_true", help="evaluate on the validation images instead of test")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of finished runs")
    arguments = parser.parse_args()
    logging.captureWarnings(True)  # Avalanche warns about its own calls at each step

    train, test = images.open_parts(arguments.data)
    test_targets = np.array([train.labels.index(test.labels[target]) for target in test.targets])
    targets = np.array(train.targets)
    data = Data(train, targets, test, test_targets, *streams.split(targets, arguments.seed))
    parts = (data.targets, train), (test_targets, test)
    lacks = [word for name, word in WITHOUT.items() if not getattr(arguments, name)]
    changed = [
        f"{name}={getattr(arguments, name)}" for name, usual in USUAL.items() if getattr(arguments, name) != usual
    ]
    asked = {
        "benchmark": "increments",
        "data": train.name,
        "digest": images.digest((targets, (example.image for example in files)) for targets, files in parts),
        "model": "resnet18_slim",
        "part": "validation" if arguments.validation else "test",
        "through": "memory",
        "strategy": f"avalanche {arguments.strategy}",
        "overrides": [f"lr={arguments.lr}", *changed, *lacks],
        "budget": 1,
        "seed": arguments.seed,
        "images": len(data.learned),
        "examined": len(data.validation if arguments.validation else test_targets),
    }
    print(json.dumps(runs.once(arguments.runs, asked, lambda: replay(arguments, data))))


if __name__ == "__main__":
    main()
