"""Batches of scikit-learn's handwritten digits, settings for a learner of them, and its state as bytes."""

import copy
from collections.abc import Iterable, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from torch import Tensor

from stream_learner import registry
from stream_learner.config import Settings
from stream_learner.contract import tensors
from stream_learner.contract.spans import Span
from stream_learner.contract.vocabulary import Label, Split
from stream_learner.formats.images import png
from stream_learner.formats.labels import LabelRules
from stream_learner.formats.record import Place, Record, Sample
from stream_learner.learning.learner import Learner
from stream_learner.learning.process import set_up_torch
from stream_learner.monitoring.report import Report
from stream_learner.networks.tensors import as_tensors
from stream_learner.publishing.snapshot import Snapshot
from stream_learner.run.batch import Batch
from stream_learner.run.driver import Driver
from stream_learner.run.progress import Progress

SIDE = 9  # pixels; the least that resnet18_slim takes
_data, TARGETS = load_digits(return_X_y=True)
EIGHT_NHW = (_data.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
DIGITS_NHWC = np.pad(EIGHT_NHW, ((0, 0), (0, 1), (0, 1)))[..., None]
ENCODED = [png(digit_HWC) for digit_HWC in DIGITS_NHWC]
# Networks that need larger images and more time than the shared tests give each: how large, and a test of their own.
LARGE = {"resnet18": 33, "resnet50": 33, "timm:test_resnet": 33, "timm:test_vit": 32}
MODELS = [name for name in registry.MODELS if name not in LARGE]
LIGHT = {"learning__optimizer": "sgd"}  # of Muon's steps a large network's take seconds

TRAIN, VALIDATION, TEST = Split
DEFAULTS: dict[str, dict[str, Any]] = {
    "run": {"id": "digits"},
    "input": {"topics": ["images"]},
    "model": {"name": "mlp", "height": SIDE, "width": SIDE, "channels": 1},
    "batch": {"size": 8},
    "learning": {"device": "cpu", "threads": 1, "augment": []},
    "release": {"min_held_out": 1},
}


def settings(**overrides: Any) -> Settings:
    """Return settings for small batches of digits. Overrides are keyword arguments, `section__key`."""
    document = copy.deepcopy(DEFAULTS)
    for name, value in overrides.items():
        section, key = name.split("__")
        document.setdefault(section, {})[key] = value
    return Settings.model_validate(document)


set_up_torch(settings())  # as in a process of its own


def digits_of(classes: Iterable[int], count: int, skip: int = 0) -> list[int]:
    """Indices of `count` digits, alternating between the classes, of each all but its first `skip`."""
    of_class = cycle([iter(np.flatnonzero(c == TARGETS)[skip:].tolist()) for c in classes])
    return [next(indices) for _, indices in zip(range(count), of_class, strict=False)]


def batch(
    indices: Sequence[int],
    first: int = 0,
    labels: Sequence[Label] | None = None,
    weights: Sequence[float] = (1.0,),
    splits: Sequence[Split] = (TRAIN,),
    timestamps_ms: Sequence[int] = (0,),
    side: int = SIDE,
) -> Batch:
    """Return the digits at `indices` as a batch from offset `first` on. Labels to timestamps are taken in turn."""
    pixels_NHWC = np.pad(DIGITS_NHWC[indices], ((0, 0), (0, side - SIDE), (0, side - SIDE), (0, 0)))
    encodings = [ENCODED[index] for index in indices] if side == SIDE else [png(one) for one in pixels_NHWC]
    labels = labels or [str(TARGETS[index]) for index in indices]
    parts = zip(
        encodings, pixels_NHWC, cycle(labels), cycle(weights), cycle(splits), cycle(timestamps_ms), strict=False
    )
    samples = [
        Sample(f"images/0/{offset}", label, pixels_HWC, encoded, timestamp_ms, weight, split, offset)
        for offset, (encoded, pixels_HWC, label, weight, split, timestamp_ms) in enumerate(parts, first)
    ]
    return Batch(
        samples=samples,
        sources=[Record("images", 0, first + i, s.timestamp_ms, None, b"", []) for i, s in enumerate(samples)],
        spans={"images": {0: Span(first, first + len(samples))}},
        records=len(samples),
        places=[Place("images", 0, first + i) for i in range(len(samples))],
        training=sum(sample.split is TRAIN for sample in samples),
    )


def position(driver: Driver) -> int:
    """The offset that comes next."""
    return driver.progress.positions.get("images", {}).get(0, 0)


def stream(side: int = SIDE) -> list[Batch]:
    """Small batches in which all that may happen happens: classes that arrive late, held-out samples, weights,
    a batch of one, one without training samples, one whose weights are all zero."""
    parts: list[tuple[list[int], dict[str, Any]]] = [
        (digits_of([0, 1], 8), {}),
        (digits_of([0, 1], 12, skip=8), {"splits": (TRAIN, VALIDATION, TEST)}),
        (digits_of([2], 1), {}),
        (digits_of([0, 1, 2], 8, skip=20), {"weights": (0.5, 2.0, 30.0)}),
        (digits_of([0, 1, 2], 8, skip=30), {"weights": (0.0,)}),
        (digits_of([3, 4], 6), {"splits": (VALIDATION, TEST)}),
        (digits_of([3, 4, 0], 12, skip=40), {"splits": (TRAIN, TEST)}),
        (digits_of(range(10), 20, skip=60), {"weights": (1.0, 3.0)}),
        (digits_of([9], 1, skip=70), {}),
        (digits_of(range(10), 21, skip=80), {"splits": (TRAIN, VALIDATION, TEST)}),
    ]
    batches: list[Batch] = []
    for indices, rest in parts:
        batches.append(batch(indices, first=sum(b.records for b in batches), side=side, **rest))
    return batches


def as_meant(batches: list[Batch], given: Settings) -> list[Batch]:
    """The batches as a decoder gives them under `[labels]` of these settings."""
    rules = LabelRules.from_settings(given.labels)
    for b in batches:
        meant = [(sample, rules.resolve(sample.label)) for sample in b.samples]
        b.sources = [record for record, (_, label) in zip(b.sources, meant, strict=True) if label is not None]
        b.samples = [sample._replace(label=label) for sample, label in meant if label is not None]
        b.training = sum(sample.split is TRAIN for sample in b.samples)
    return batches


def driver_of(settings: Settings) -> Driver:
    """A new learner at the beginning of the stream."""
    return Driver(Learner(settings), Progress({}))


def learn(driver: Driver, batches: Iterable[Batch]) -> list[Report]:
    return [driver.learn(b) for b in batches]


def learned(settings: Settings, batches: Iterable[Batch]) -> Driver:
    """A new learner after these batches."""
    driver = driver_of(settings)
    learn(driver, batches)
    return driver


def decided(driver: Driver) -> Snapshot:
    """The snapshot with the decision whether to release."""
    return driver.snapshot(driver.decide())


def as_bytes(snapshot: Snapshot) -> bytes:
    """Encode the learner's state as a checkpoint would."""
    return tensors.encode(snapshot.tensors, snapshot.document)


def tensors_of(snapshot: Snapshot) -> dict[str, Tensor]:
    """The state's tensors."""
    return as_tensors(snapshot.tensors)


def resumed(settings: Settings, snapshot: Snapshot, release: Snapshot | None = None) -> Driver:
    """The driver after a restart from the bytes of a snapshot, and of the one that was saved with the last release."""
    released = release and _decoded(release)
    return Driver.resumed(settings, snapshot.positions, _decoded(snapshot), snapshot.parts, released)


def _decoded(snapshot: Snapshot) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    data = as_bytes(snapshot)
    return tensors.decode(data), tensors.decode_document(data)
