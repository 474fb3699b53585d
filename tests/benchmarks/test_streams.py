import numpy as np
import pytest
from sklearn.datasets import load_digits

from benchmarks import streams

_, TARGETS = load_digits(return_X_y=True)
TRAIN, VALIDATION = streams.split(TARGETS, 0)
STREAMS = {
    "iid": lambda seed: streams.iid(TRAIN, seed, 10),
    "increments": lambda seed: streams.increments(TARGETS, TRAIN, seed),
    "gaussian_schedule": lambda seed: streams.gaussian_schedule(TARGETS, TRAIN, seed),
    "zipf": lambda seed: [streams.zipf(TARGETS, TRAIN, seed, 10)],
}


def test_a_split_parts_all_images_and_takes_the_same_share_of_each_class():
    assert np.array_equal(np.sort(np.concatenate([TRAIN, VALIDATION])), np.arange(len(TARGETS)))
    shares = np.bincount(TARGETS[VALIDATION]) / np.bincount(TARGETS)
    assert np.abs(shares - 0.05).max() < 0.005


def test_a_split_of_few_images_leaves_some_on_both_sides():
    train, validation = streams.split(np.array([0, 1, 1, *[2] * 9]), 0)
    assert np.bincount(np.array([0, 1, 1, *[2] * 9])[validation], minlength=3).tolist() == [0, 1, 1]
    assert len(train) == 10


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_a_seed_gives_one_order_in_which_no_image_comes_twice(stream):
    once, again, other = (np.concatenate(stream(seed)) for seed in (1, 1, 2))
    assert np.array_equal(once, again)
    assert not np.array_equal(once, other)
    assert len(np.unique(once)) == len(once)
    assert np.isin(once, TRAIN).all()


@pytest.mark.parametrize("name", ["iid", "increments", "gaussian_schedule"])
def test_a_stream_shows_every_training_image(name: str):
    assert sorted(np.concatenate(STREAMS[name](0))) == TRAIN.tolist()


def test_the_split_and_the_stream_of_a_seed_are_those_of_the_published_figures():
    assert VALIDATION[:8].tolist() == [19, 48, 108, 118, 142, 143, 155, 163]
    assert [increment[:3].tolist() for increment in streams.increments(TARGETS, TRAIN, 0)] == [
        [866, 736, 1540],
        [1047, 53, 219],
        [1173, 931, 164],
        [1181, 496, 178],
        [1309, 1614, 289],
    ]


def test_increments_share_no_class():
    classes = [set(TARGETS[increment].tolist()) for increment in streams.increments(TARGETS, TRAIN, 0)]
    assert [len(some) for some in classes] == [2] * 5
    assert set.union(*classes) == set(range(10))


def test_more_increments_than_classes_are_refused():
    with pytest.raises(ValueError, match="10 classes"):
        streams.increments(TARGETS, TRAIN, 0, 11)


def test_increments_take_classes_with_any_numbers():
    (first, second) = streams.increments(TARGETS * 7 + 3, TRAIN, 0, 2)
    assert not np.isin(TARGETS[first], TARGETS[second]).any()


def test_parts_that_are_alike_hold_all_classes():
    for part in streams.iid(TRAIN, 0, 10):
        assert len(np.unique(TARGETS[part])) == 10


def test_a_gaussian_schedule_shows_each_class_around_a_turn_of_its_own():
    (order,) = streams.gaussian_schedule(TARGETS, TRAIN, 0, width=0.02)
    times = np.arange(len(order)) / len(order)
    centres = sorted(times[TARGETS[order] == label].mean() for label in range(10))
    assert np.allclose(centres, np.arange(0.05, 1, 0.1), atol=0.02)
    (blurred,) = streams.gaussian_schedule(TARGETS, TRAIN, 0, width=10.0)
    assert len(np.unique(TARGETS[blurred[:100]])) == 10


def test_zipf_keeps_shares_that_fall_by_the_ratio_along_a_power_law():
    kept = np.bincount(TARGETS[streams.zipf(TARGETS, TRAIN, 0, ratio=10)]) / np.bincount(TARGETS[TRAIN])
    shares = np.sort(kept)[::-1]
    assert np.allclose(shares, np.arange(1, 11) ** -1.0, atol=0.01)
    assert np.bincount(TARGETS[streams.zipf(TARGETS, TRAIN, 0, ratio=1e6)]).min() == 1
