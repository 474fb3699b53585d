"""Retraining, the baseline of incremental learning: a new network for each increment, trained on all data so far."""

import copy
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.data import Data, decoded
from benchmarks.exam import Exam
from benchmarks.outcome import Moment, Outcome
from benchmarks.scenarios import Stream
from benchmarks.scores import Point, accuracy_of_seen
from stream_learner import networks as models
from stream_learner.config import Settings
from stream_learner.learning.placement import Placement, place
from stream_learner.learning.process import set_up_torch
from stream_learner.learning.spec import spec_of
from stream_learner.registry import AUGMENTATIONS
from stream_learner.run.process import keep_freed_memory

BATCH = 32
LEARNING_RATE = 0.001
EPOCHS = 10
PATIENCE = 2
"""Epochs without a better validation accuracy after which training stops."""


Trained = dict[str, Any]
"""Figures and costs of one increment, as JSON."""


def retrain(
    settings: Settings,
    stream: Stream,
    data: Data,
    exam: Exam,
    validation: Exam,
    once: Callable[[int, Callable[[], Trained]], Trained],
    say: Callable[[str], None],
    on_progress: Callable[[int], None],
) -> Outcome:
    """Train a new network at each of `stream.ends`, and print its test accuracy on 2,000 images.

    Training uses Adam, rate 0.001, batches of 32, at most 10 epochs, and the learner's augmentation. The epoch with the
    best accuracy on the validation images counts. `once(number, train)` returns the result of `train()`, or the result
    of an earlier call.
    """
    keep_freed_memory()
    set_up_torch(settings)
    placement = place(settings.learning, models.factory(settings.model.name))
    pixels_NHWC = torch.from_numpy(decoded((data.train.images[i] for i in stream.indices.tolist()), settings.model))
    outcome = Outcome()
    for number, end in enumerate(stream.ends, 1):
        classes = np.unique(stream.labels[:end])
        rows = torch.from_numpy(np.searchsorted(classes, stream.labels[:end]))
        say(f"Increment {number}: {end} images, {len(classes)} classes")
        before = outcome.views
        arguments = settings, placement, pixels_NHWC[:end], rows, classes.tolist(), exam, validation, say
        trained = once(number, partial(train, *arguments, lambda views, before=before: on_progress(before + views)))
        outcome.views += trained["views"]
        outcome.steps += trained["steps"]
        outcome.seconds += trained["seconds"]
        outcome.evaluation_views += trained["evaluation_views"]
        point = Point(*(np.array(trained["point"][name]) for name in Point._fields))
        outcome.moments.append(Moment(end, outcome.views, outcome.seconds, point))
    return outcome


def train(
    settings: Settings,
    placement: Placement,
    pixels_NHWC: Tensor,
    rows: Tensor,
    classes: list[int],
    exam: Exam,
    validation: Exam,
    say: Callable[[str], None],
    on_progress: Callable[[int], None],
) -> Trained:
    """Train one network on images, uint8 [N, H, W, C]. `rows`, int64 [N], are indices into `classes`."""
    torch.manual_seed(settings.run.seed)
    augmentations = [AUGMENTATIONS.lookup(name) for name in settings.learning.augment]
    model = models.build(spec_of(settings.model, len(classes)), own=settings.model.name)
    model.to(placement.device, memory_format=placement.memory_format)  # pyright: ignore
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=True)
    best, best_accuracy, best_epoch = copy.deepcopy(model), -1.0, 0
    views = steps = evaluation_views = 0
    seconds = 0.0
    for epoch in range(1, EPOCHS + 1):
        began = time.monotonic()
        model.train()
        losses = []
        for drawn in torch.randperm(len(rows)).split(BATCH):
            images_NHWC = pixels_NHWC[drawn].to(placement.device)
            for augment in augmentations:
                images_NHWC = augment(images_NHWC)
            optimizer.zero_grad()
            with placement.training():
                loss = F.cross_entropy(model(images_NHWC).float(), rows[drawn].to(placement.device))
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            views += len(drawn)
            on_progress(views)
        seconds += time.monotonic() - began
        steps += len(losses)
        valid = validation.take(model, placement.device, classes)
        test = exam.take(model, placement.device, classes, sample=True)
        evaluation_views += valid.asked + test.asked
        say(f"Epoch {epoch} - Train Loss: {np.mean(losses):.4f}, Test Acc: {accuracy_of_seen(test) or 0:.4f}")
        accuracy = accuracy_of_seen(valid)
        if accuracy is None or accuracy > best_accuracy:  # without validation accuracy, the last epoch counts
            best, best_accuracy, best_epoch = copy.deepcopy(model), accuracy or 0.0, epoch
        elif epoch - best_epoch >= PATIENCE:
            break
    point = exam.take(best, placement.device, classes)
    evaluation_views += point.asked
    return {
        "views": views,
        "steps": steps,
        "seconds": seconds,
        "evaluation_views": evaluation_views,
        "point": {name: figures.tolist() for name, figures in point._asdict().items()},
    }
