"""The check of solved heads."""

from collections.abc import Callable

import torch
from torch import Tensor

from stream_learner.learning.heads.statistics import NEVER, StatisticsHead
from stream_learner.registry import HEADS
from stream_learner.testing.checking import Checking, forged, registered, same, same_tensors
from stream_learner.testing.small_run import check_in_a_learner, small_settings

CPU = torch.device("cpu")
CLASSES = 5
FEATURES = 12
SAMPLES = 300
ROUNDING = 1e-4


def check_head(kind: type[StatisticsHead]) -> None:
    """Check a solved head, given by its class.

    The layer has the right shape, predicts most of the samples that it saw, and never predicts a class without samples.
    It depends neither on the order of the samples nor on their division into batches. A sample with weight 2 counts
    like two samples, and a sample with weight 0 does not count. Samples of a retired class move to the other class.

    The state is float64 and complete, and a damaged state is refused. The check also saves and resumes a Learner that
    uses the head. Raises AssertionError.
    """
    check = Checking(kind)
    check.has(kind, "observe", "retire", "solve", "state_dict", "load_state_dict")
    check.that(isinstance(getattr(kind, "expands", None), bool), "it needs the class attribute `expands`")
    with torch.random.fork_rng(devices=[]):
        samples = _Samples()
        _check_layer(check, kind, samples)
        _check_sums(check, kind, samples)
        _check_state(check, kind, samples)
        _check_retiring(check, kind, samples)
        with registered(HEADS, kind) as name:
            check_in_a_learner(check, small_settings(model={"head": name, "random_features": 20}))


class _Samples:
    """Features of well separated classes, far from zero. One feature is always 0, like a pixel that is always black."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.randint(CLASSES, (SAMPLES,), generator=generator)
        means = 3 * torch.randn(CLASSES, FEATURES, generator=generator)
        self.features = 2 + means[self.labels] + torch.randn(SAMPLES, FEATURES, generator=generator)
        self.features[:, 3] = 0
        self.weights = torch.tensor([0.25, 1.0, 2.0, 10.0])[torch.randint(4, (SAMPLES,), generator=generator)]


Layer = tuple[Tensor, Tensor]


def _observe(
    check: Checking, head: StatisticsHead, s: _Samples, indices: Tensor, labels: Tensor, weights: Tensor
) -> None:
    batch = s.features[indices], labels[indices], weights[indices]
    check.call(f"observe() of {len(indices)} samples", lambda: head.observe(*batch))


def _seen(check: Checking, kind: type[StatisticsHead], s: _Samples, indices: Tensor | None = None) -> StatisticsHead:
    """Return a head that observed the samples at `indices` in one batch. The default is all samples."""
    head = check.call("building it with the number of features and a device", lambda: kind(FEATURES, CPU))
    _observe(check, head, s, torch.arange(SAMPLES) if indices is None else indices, s.labels, s.weights)
    return head


def _solve(check: Checking, head: StatisticsHead, classes: int = CLASSES) -> Layer:
    found = check.call(f"solve({classes})", lambda: head.solve(classes))
    if not (isinstance(found, tuple) and len(found) == 2 and all(isinstance(part, Tensor) for part in found)):
        check.that(False, f"solve() returns {type(found).__name__}, not weight and bias, two tensors")
    weight, bias = found
    fits = (weight.shape, bias.shape) == ((classes, FEATURES), (classes,))
    float32 = weight.dtype == bias.dtype == torch.float32
    check.that(
        fits and float32,
        f"solve({classes}) returns weight {weight.dtype} {list(weight.shape)} and bias {bias.dtype} "
        f"{list(bias.shape)}, not float32 {[classes, FEATURES]} and {[classes]}",
    )
    check.that(weight.isfinite().all() and bias.isfinite().all(), "solve() returns numbers that are not finite")
    return weight, bias


def _close(one: Layer, other: Layer) -> bool:
    return all(torch.allclose(a, b, rtol=ROUNDING, atol=ROUNDING) for a, b in zip(one, other, strict=True))


def _check_silent(check: Checking, layer: Layer, classes: list[int], which: str) -> None:
    weight, bias = layer
    silent = not weight[classes].any() and (bias[classes] == torch.tensor(NEVER)).all()
    check.that(silent, f"the row of a class {which} must have weights 0 and the bias NEVER ({NEVER})")


def _check_layer(check: Checking, kind: type[StatisticsHead], s: _Samples) -> None:
    empty = check.call("building it with the number of features and a device", lambda: kind(FEATURES, CPU))
    _check_silent(check, _solve(check, empty, 3), [0, 1, 2], "without samples")
    for count in (1, 2, 3):
        _solve(check, _seen(check, kind, s, torch.arange(count)))
    head = _seen(check, kind, s)
    before = check.storable(check.call("state_dict()", head.state_dict))
    weight, bias = _solve(check, head, CLASSES + 2)
    _check_silent(check, (weight, bias), [CLASSES, CLASSES + 1], "without samples")
    check.that(same_tensors(before, head.state_dict()), "solve() changes the sums; solving must change nothing")
    right = ((s.features @ weight.T + bias).argmax(1) == s.labels).float().mean()
    check.that(
        right > 0.5, f"it predicts {right:.0%} of well separated samples that it saw; solve the rows from the sums"
    )


def _check_sums(check: Checking, kind: type[StatisticsHead], s: _Samples) -> None:
    expected = _solve(check, _seen(check, kind, s))
    orders = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(1)), s.labels.argsort(stable=True)
    for order in orders:
        head = kind(FEATURES, CPU)
        for indices in order.split(7):
            _observe(check, head, s, indices, s.labels, s.weights)
        check.that(
            _close(_solve(check, head), expected),
            "the result depends on the order of samples or on batches; solve from sums over all samples, in float64",
        )
    weights = torch.tensor([0.0, 1.0, 2.0]).repeat(SAMPLES // 3)
    weighted, repeated = kind(FEATURES, CPU), kind(FEATURES, CPU)
    _observe(check, weighted, s, torch.arange(SAMPLES), s.labels, weights)
    indices = torch.arange(SAMPLES).repeat_interleave(weights.long())
    _observe(check, repeated, s, indices, s.labels, torch.ones(SAMPLES))
    check.that(
        _close(_solve(check, weighted), _solve(check, repeated)),
        "a sample of weight 2 must count like two samples, and a sample of weight 0 must not count",
    )
    ghost = kind(FEATURES, CPU)
    _observe(check, ghost, s, torch.arange(SAMPLES), s.labels, (s.labels != 2).float())
    _check_silent(check, _solve(check, ghost), [2], "whose samples all have weight 0")


def _check_retiring(check: Checking, kind: type[StatisticsHead], s: _Samples) -> None:
    def retire(head: StatisticsHead, source: int, target: int | None) -> None:
        check.call(f"retire({source}, {target})", lambda: head.retire(source, target))

    merged, wanted = _seen(check, kind, s), kind(FEATURES, CPU)
    retire(merged, 3, 1)
    _observe(check, wanted, s, torch.arange(SAMPLES), s.labels.where(s.labels != 3, 1), s.weights)
    layer = _solve(check, merged)
    _check_silent(check, layer, [3], "that retired")
    check.that(
        _close(layer, _solve(check, wanted)),
        "retire(3, 1) must give the same head as if all samples of class 3 had been samples of class 1",
    )
    gone = _seen(check, kind, s)
    retire(gone, 3, None)
    _check_silent(check, _solve(check, gone), [3], "that retired")
    other = kind(FEATURES, CPU)
    check.call("load_state_dict() after retire()", lambda: other.load_state_dict(gone.state_dict(), CLASSES))
    check.that(_close(_solve(check, gone), _solve(check, other)), "load_state_dict() forgets that a class retired")
    unseen = kind(FEATURES, CPU)
    for source, target in ((1, 2), (0, None)):
        retire(unseen, source, target)
    _check_silent(check, _solve(check, unseen), [0, 1, 2], "without samples")


def _check_state(check: Checking, kind: type[StatisticsHead], s: _Samples) -> None:
    half = torch.arange(SAMPLES // 2)

    def rest(head: StatisticsHead) -> tuple[Layer, dict[str, Tensor]]:
        _observe(check, head, s, half + SAMPLES // 2, s.labels, s.weights)
        return _solve(check, head), check.storable(head.state_dict())

    head = _seen(check, kind, s, half)
    kept = check.call("state_dict()", head.state_dict)
    state = check.storable(kept)
    for name, tensor in state.items():
        check.that(tensor.device == CPU, f"state_dict() holds {name} on {tensor.device}; copy it to the CPU")
        float64 = not tensor.is_floating_point() or tensor.dtype == torch.float64
        check.that(float64, f"state_dict() holds {name} as {tensor.dtype}; use float64 for sums over a long run")
    layer, after = rest(head)
    check.that(same_tensors(kept, state), "observe() changes what state_dict() returned before; return copies")
    other = check.call("building it with the number of features and a device", lambda: kind(FEATURES, CPU))
    load: Callable[[], None] = lambda: other.load_state_dict(kept, CLASSES)  # noqa: E731
    check.call("load_state_dict()", load)
    layer_, after_ = rest(other)
    continued = all(map(same, layer, layer_)) and same_tensors(after, after_)
    check.that(continued, "another head that loads its state continues differently; keep all sums in state_dict()")
    check.that(same_tensors(kept, state), "observe() changes the state that load_state_dict() got; keep copies")
    for description, damaged in forged(state):
        check.refuses(lambda damaged=damaged: kind(FEATURES, CPU).load_state_dict(damaged, CLASSES), description)
    fewer = CLASSES - 1
    check.refuses(
        lambda: kind(FEATURES, CPU).load_state_dict(kept, fewer), f"a state with {CLASSES} classes if {fewer} are known"
    )
