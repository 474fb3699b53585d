"""Others may write to the store, so a state with any content is restored completely or refused."""

import copy
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

import pytest
import torch
from digit_stream import batch, decided, digits_of, learned, position, settings, stream, tensors_of
from torch import Tensor

from stream_learner.errors import StateError
from stream_learner.learning.learner import Learner
from stream_learner.learning.saved import Saved as LearnerState
from stream_learner.learning.state_dict import join
from stream_learner.learning.stored import part
from stream_learner.networks.tensors import as_arrays
from stream_learner.publishing.snapshot import Snapshot
from stream_learner.run.driver import Driver
from stream_learner.run.progress import Progress

RUNS = [
    {
        "weights__policies": ("record", "class_balance", "hardness", "recency"),
        "weights__half_life_s": 1.0,
        "memory__segment_bytes": 500,
        "memory__max_bytes": 100_000,
        "held_out__max_bytes": 50_000,
    },
    {"learning__strategy": "derpp", "learning__optimizer": "adam", "memory__max_items": 12},
    {"learning__optimizer": "sgd", "learning__average_decay": 0.0},
    {"model__head": "random_features", "model__random_features": 20},
]
SHARE = 0.03
"""Of the forgeries of each kind, those that are tried."""
REMOVED = object()
JUNK: list[Any] = [REMOVED, None, "x", -1, 2**62, 2**70, -1e300, [], [[]], {}, {"a": 1}, True]
EXTREMES = [float("nan"), float("inf"), -1, 2**31, 3e38]
# Bytes that no item points at do no harm, and classes without a sample need no entry.
ANY_LENGTH = ("/tail", "/limits", "/frequencies")
# A state is as good without what an optimizer or a strategy has begun to keep.
OPTIONAL = ("trainer/optimizer/", "trainer/strategy/")

for_every_run = pytest.mark.parametrize("run", RUNS, ids=lambda run: next(iter(run)))


class Saved(NamedTuple):
    """A snapshot taken with a release, and a later one."""

    release: Snapshot
    newest: Snapshot


def saved(run: dict) -> Saved:
    driver = learned(settings(**run), stream()[:8])
    release = decided(driver)
    driver.learn(batch(digits_of([1, 2], 9), first=position(driver)))
    return Saved(release, driver.snapshot())


def is_refused(run: dict, saved: Saved) -> bool:
    """Return whether the state is refused, or its memory once it is read. If neither, everything must work."""
    release, newest = saved
    states = [join(tensors_of(snapshot), snapshot.document) for snapshot in (newest, release)]
    given = LearnerState(states[0], newest.parts, states[1])
    try:
        driver = Driver(Learner(settings(**run), given), Progress(newest.positions, newest.document))
    except ValueError:
        return True
    try:
        for skip in (20, 30):
            driver.learn(batch(digits_of(range(10), 10, skip=skip), first=position(driver)))
        decided(driver)
    except StateError:
        return True
    return False


def with_tensor(saved: Saved, which: str, name: str, tensor: Tensor | None) -> Saved:
    """The snapshots, one of which has another tensor, or lacks it."""
    snapshot: Snapshot = getattr(saved, which)
    tensors = {n: t for n, t in tensors_of(snapshot).items() if n != name}
    return saved._replace(
        **{which: replace(snapshot, tensors=as_arrays(tensors | ({name: tensor} if tensor is not None else {})))}
    )


def of_another_form(saved: Saved) -> Iterator[tuple[str, Saved]]:
    """With a tensor that is missing, or of another dtype or shape."""
    for name, tensor in tensors_of(saved.newest).items():
        if not name.startswith(OPTIONAL):
            yield f"{name} missing", with_tensor(saved, "newest", name, None)
        others = [tensor.to(torch.float16), tensor[None]]
        if tensor.ndim and len(tensor) and not name.endswith(ANY_LENGTH):
            others += [torch.cat([tensor, tensor]), tensor[:-1]]
        for other in others:
            yield f"{name} {other.dtype} {list(other.shape)}", with_tensor(saved, "newest", name, other)


def with_other_numbers(saved: Saved) -> Iterator[tuple[str, Saved]]:
    """With a tensor of which one element, or all, are out of the ordinary."""
    for which in Saved._fields:
        for name, tensor in tensors_of(getattr(saved, which)).items():
            for value in EXTREMES:
                if not tensor.is_floating_point():
                    limits = torch.iinfo(tensor.dtype)
                    if not limits.min <= value <= limits.max:
                        continue
                one = tensor.clone()
                one.view(-1)[:1] = value
                for forged in (one, torch.full_like(tensor, value)):
                    yield f"{which}: {name} {value}", with_tensor(saved, which, name, forged)


def with_other_documents(saved: Saved) -> Iterator[tuple[str, Saved]]:
    """With a document that lacks a value, or has another in its place."""
    for which in Saved._fields:
        snapshot: Snapshot = getattr(saved, which)
        for path in paths(snapshot.document):
            for junk in JUNK:
                forged = copy.deepcopy(snapshot.document)
                place: Any = forged
                for key in path[:-1]:
                    place = place[key]
                if junk is REMOVED:
                    del place[path[-1]]
                else:
                    place[path[-1]] = junk
                yield f"{which}: {path} {junk}", saved._replace(**{which: replace(snapshot, document=forged)})


def paths(document: Any, path: tuple = ()) -> Iterator[tuple]:
    """Where every value of a document stands."""
    if path:
        yield path
    entries = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else []
    )
    for key, value in entries:
        yield from paths(value, (*path, key))


def sampled(forgeries: Iterator[tuple[str, Saved]]) -> Iterator[tuple[str, Saved]]:
    """Return a sample, the same in every run. All at once would take gigabytes."""
    chosen = random.Random(0)
    return (forgery for forgery in forgeries if chosen.random() < SHARE)


@for_every_run
def test_a_state_is_taken_over_as_it_was_saved_and_refused_in_any_other_form(run):
    intact = saved(run)
    assert not is_refused(run, intact)
    for what, forged in sampled(of_another_form(intact)):
        assert is_refused(run, forged), what


@for_every_run
def test_whatever_a_state_holds_it_works_or_is_refused(run):
    intact = saved(run)
    for forgeries in (with_other_numbers(intact), with_other_documents(intact)):
        for what, forged in sampled(forgeries):
            try:
                is_refused(run, forged)
            except Exception as error:
                raise AssertionError(what) from error


def test_memory_that_runs_out_is_not_blamed_on_the_state():
    error = RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")
    with pytest.raises(RuntimeError) as caught, part("trainer"), part("model"):
        raise error
    assert caught.value is error
    with pytest.raises(ValueError, match="trainer: model: RuntimeError: another"), part("trainer"), part("model"):
        raise RuntimeError("another")


@for_every_run
def test_weights_that_are_not_finite_are_refused(run):
    intact = saved(run)
    for which in Saved._fields:
        for name in islice((n for n in intact.newest.tensors if n.startswith("trainer/model/")), 3):
            forged = torch.full_like(tensors_of(intact.newest)[name], float("nan"))
            assert is_refused(run, with_tensor(intact, which, name, forged)), name
