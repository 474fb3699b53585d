"""Streams: the order of a benchmark's images. It depends only on a seed, so it is the same for every contender.

A stream holds indices into a data set. `targets`, int64 [N], is the class of each image. A stream is a list of
increments, and each increment an int64 array of indices in the order of arrival. No index occurs twice.
"""

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]

SPLIT, CLASSES, ARRIVAL, TIMES, COUNTS = range(5)
"""Uses of a seed. Each use has random numbers of its own."""


def split(targets: Indices, seed: int, validation: float = 0.05) -> tuple[Indices, Indices]:
    """Return (train, validation), ascending: a random share `validation` of each class is held out.

    Of a class with at least two images, at least one is held out, but never all.
    """
    random = np.random.default_rng((seed, SPLIT))
    held_out = [
        random.permutation(members)[: min(len(members) - 1, max(1, round(validation * len(members))))]
        for members in (np.flatnonzero(targets == label) for label in np.unique(targets))
    ]
    chosen = np.isin(np.arange(len(targets)), np.concatenate(held_out))
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def iid(train: Indices, seed: int, count: int = 1) -> list[Indices]:
    """Return `count` similar increments: random parts of `train`."""
    return np.array_split(np.random.default_rng((seed, ARRIVAL)).permutation(train), count)


def increments(targets: Indices, train: Indices, seed: int, count: int = 5) -> list[Indices]:
    """Return `count` increments with disjoint classes, each shuffled (van de Ven et al. 2022, class-incremental).

    The seed decides which classes belong together, and their order. Raises ValueError if there are fewer classes than
    increments.
    """
    order = _class_order(targets[train], seed)
    if len(order) < count:
        raise ValueError(f"{len(order)} classes are too few for {count} increments")
    (mixed,) = iid(train, seed)
    return [mixed[np.isin(targets[mixed], classes)] for classes in np.array_split(order, count)]


def gaussian_schedule(targets: Indices, train: Indices, seed: int, width: float = 0.1) -> list[Indices]:
    """Return one increment without boundaries, in which classes rise and fall (Shanahan et al. 2021).

    Images of a class arrive at times drawn from a normal distribution around its turn. The turns are spread evenly over
    the stream, in an order from the seed. `width` is the standard deviation as a share of the stream.
    """
    order = _class_order(targets[train], seed)
    turns = (np.argsort(order) + 0.5) / len(order)  # of the classes, ascending
    (mixed,) = iid(train, seed)
    own_turns = turns[np.searchsorted(np.sort(order), targets[mixed])]
    times = np.random.default_rng((seed, TIMES)).normal(own_turns, width)
    return [mixed[np.argsort(times, kind="stable")]]


def zipf(targets: Indices, train: Indices, seed: int, ratio: float = 100.0) -> Indices:
    """Return the rest of `train`, ascending, when the k-th class keeps a share k^-s of its images (Zipf's law).

    The exponent s is chosen so that the first class keeps `ratio` times the share of the last one, which keeps at least
    one image. The order of the classes comes from the seed.
    """
    order = _class_order(targets[train], seed)
    ranks = np.arange(1, len(order) + 1)
    shares = ranks ** -(np.log(ratio) / np.log(max(2, len(order))))
    random = np.random.default_rng((seed, COUNTS))
    kept = []
    for label, share in zip(order, shares, strict=True):
        members = train[targets[train] == label]
        kept.append(random.choice(members, max(1, round(share * len(members))), replace=False))
    return np.sort(np.concatenate(kept))


def _class_order(targets: Indices, seed: int) -> Indices:
    return np.random.default_rng((seed, CLASSES)).permutation(np.unique(targets))
