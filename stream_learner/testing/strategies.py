"""The check of strategies."""

import copy

import torch
from torch import Tensor

from stream_learner.learning.heads import silence
from stream_learner.learning.strategies import Losses, Minibatch, Step, Strategy
from stream_learner.networks import head
from stream_learner.networks.small import MLP
from stream_learner.registry import STRATEGIES
from stream_learner.testing.checking import Checking, forged, registered, same, same_tensors
from stream_learner.testing.small_run import check_in_a_learner, small_settings

SIDE = 6  # pixels
CLASSES = 4
STEPS = [(8, 0, "fp32"), (1, 0, "fp32"), (8, 8, "fp32"), (1, 8, "fp32"), (8, 8, "bf16")]
"""Steps to check: number of new samples, number of replayed samples, and `learning.precision`."""
LITTLE = 1e-6
"""A weight that hardly counts. It is above 0, because a step always has a new sample with a weight above 0."""


def check_strategy(kind: type[Strategy]) -> None:
    """Check a strategy, given by its class.

    Losses and weights are float32 [N] and finite. This holds with and without samples from the memory, while classes
    arrive and retire, and if the network computes in bfloat16. A sample of weight 0 does not change the gradient, and
    twice the weights give about twice the gradient. `losses` changes nothing. `sums` depends only on the samples of
    its shard: the sums of parts of a step add up to the sums of the step.

    The state is complete: loading it undoes a step, and another instance that loads it continues with the same bytes. A
    damaged state is refused. The check also saves and resumes a Learner that uses the strategy. Raises AssertionError.
    """
    check = Checking(kind)
    derived = isinstance(kind, type) and issubclass(kind, Strategy)
    check.that(derived, "a strategy is a class derived from stream_learner.Strategy")
    with torch.random.fork_rng(devices=[]):
        _check_sums(check, kind)
        _check_losses(check, kind)
        _check_weights(check, kind)
        _check_state(check, kind)
        _check_retiring(check, kind)
        with registered(STRATEGIES, kind) as name:
            decay = 0.9 if kind.distils else 0.0
            check_in_a_learner(check, small_settings(learning={"strategy": name, "average_decay": decay}))


class _Scene:
    """A small network, its average, and random minibatches that depend on a seed."""

    def __init__(self, kind: type[Strategy]):
        self._kind = kind
        torch.manual_seed(0)
        self.model = MLP(CLASSES, SIDE, SIDE, 1, [0.5], [0.25])
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False) if kind.distils else None
        self.labels = torch.arange(CLASSES)

    @property
    def heads(self) -> list[torch.nn.Linear]:
        return [network.head for network in (self.model, self.average) if network]

    def grow(self, classes: int) -> None:
        for network in (self.model, self.average):
            if network:
                network.head = head(network.head.in_features, classes).requires_grad_(network is self.model)
        self.labels = torch.arange(classes)

    def step(self, seed: int, stream: int = 8, replayed: int = 8, weights: tuple[float, ...] = (1.0, 0.5)) -> Step:
        """Return the input of a step with `stream` new samples and `replayed` samples from the memory."""
        generator = torch.Generator().manual_seed(seed)

        def minibatch(count: int) -> Minibatch:
            images = torch.randint(0, 256, (count, SIDE, SIDE, 1), dtype=torch.uint8, generator=generator)
            labels = self.labels[torch.randint(len(self.labels), (count,), generator=generator)]
            logits = None
            if self._kind.stores_logits:
                logits = torch.randn(count, self.model.head.out_features, generator=generator)
                logits[: count // 2, -1] = torch.nan  # no step had trained this class when the samples arrived
                logits[:, [row for row in range(logits.shape[1]) if row not in self.labels]] = torch.nan
            return Minibatch(images, labels, torch.tensor([weights[i % len(weights)] for i in range(count)]), logits)

        first = minibatch(stream)
        return Step(self.model, self.average, first, minibatch(replayed if self._kind.replays else 0))


def _losses(check: Checking, strategy: Strategy, step: Step, what: str) -> Losses:
    """Return the losses of a step. Check that they are float32 [N], finite and have a gradient."""
    step.model.train()
    torch.manual_seed(0)
    given = {
        "average, as `distils` is False": step.average,
        "logits, as `stores_logits` is False": step.stream.logits,
    }
    without = "".join(f"; without {name}" for name, value in given.items() if value is None)
    totals = check.call(f"sums() of {what}", lambda: strategy.sums(step))
    if totals is not None:
        check.call(f"begin() of {what}", lambda: strategy.begin(totals))
    found = check.call(f"losses() of {what}{without};", lambda: strategy.losses(step))
    if not (isinstance(found, tuple) and len(found) == 2 and all(isinstance(part, Tensor) for part in found)):
        check.that(False, f"losses() returns {type(found).__name__}; return Losses(losses, weights), two tensors")
    losses, weights = found
    returned = f"losses {losses.dtype} {list(losses.shape)} and weights {weights.dtype} {list(weights.shape)}"
    fits = losses.ndim == 1 and losses.shape == weights.shape and losses.dtype == weights.dtype == torch.float32
    check.that(fits, f"{what} gives {returned}; both must be float32 [N], one value for each sample (reduction='none')")
    check.that(losses.isfinite().all(), f"{what} gives losses that are not finite")
    check.that(
        weights.isfinite().all() and (weights >= 0).all(), f"{what} gives weights that are negative or not finite"
    )
    check.that(losses.requires_grad, f"{what} gives losses without a gradient; compute them from step.model")
    return Losses(losses, weights)


def _gradient(check: Checking, strategy: Strategy, step: Step, what: str) -> Tensor:
    losses, weights = _losses(check, strategy, step, what)
    parameters = [*step.model.parameters()]
    found = torch.autograd.grad((losses * weights).sum(), parameters, allow_unused=True)
    return torch.cat([(p * 0 if g is None else g).flatten() for p, g in zip(parameters, found, strict=True)]).detach()


def _check_losses(check: Checking, kind: type[Strategy]) -> None:
    strategy, scene = check.call("building it without arguments", kind), _Scene(kind)
    for classes in (CLASSES, CLASSES + 2):
        scene.grow(classes)
        for number, (stream, replayed, precision) in enumerate(STEPS):
            step = scene.step(number, stream, replayed)
            counts = f"{stream} new and {replayed if kind.replays else 0} replayed samples"
            what = f"a step with {counts}, {classes} classes, {precision}"
            networks = [network for network in (scene.model, scene.average) if network]
            before, images = copy.deepcopy([n.state_dict() for n in networks]), step.stream.images_NHWC.clone()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                gradient = _gradient(check, strategy, step, what)
            check.that(gradient.isfinite().all(), f"{what} gives a gradient that is not finite")
            learns = gradient.any() or stream == 1  # with a single new sample, the loss of some strategies is 0
            check.that(learns, f"{what} gives a gradient of 0, so that nothing is learned")
            after = [n.state_dict() for n in networks]
            unchanged = all(same_tensors(one, other) for one, other in zip(before, after, strict=True))
            check.that(unchanged, "losses() changes the network or its average; only the optimizer changes them")
            check.that(same(step.stream.images_NHWC, images), "losses() changes the images of the step; copy them")


def _check_weights(check: Checking, kind: type[Strategy]) -> None:
    scene = _Scene(kind)
    step = scene.step(0, weights=(0.0, 1.0))

    def other_images(minibatch: Minibatch) -> Minibatch:
        images = minibatch.images_NHWC.clone()
        images[::2] = 255 - images[::2]
        return minibatch._replace(images_NHWC=images)

    gradient = _gradient(check, kind(), step, "a step with some weights 0")
    check.that(
        same(gradient, _gradient(check, kind(), step, "the same step again")),
        "losses() differs between two new instances for the same step; draw only from torch's default generator, and "
        "use no clock and no state that instances share",
    )
    changed = {
        "new sample": step._replace(stream=other_images(step.stream)),
        "replayed sample": step._replace(replay=other_images(step.replay)),
    }
    for name, other in changed.items():
        check.that(
            torch.allclose(gradient, _gradient(check, kind(), other, "a step with some weights 0"), atol=1e-5),
            f"a {name} of weight 0 changes the gradient; multiply by the weights of the step, and return them",
        )

    def weighed(new: float, replayed: float) -> Tensor:
        stream = step.stream._replace(weights=new * step.stream.weights)
        replay = step.replay._replace(weights=replayed * step.replay.weights)
        other = step._replace(stream=stream, replay=replay)
        return _gradient(check, kind(), other, f"a step with weights of {new} and replayed weights of {replayed}")

    for name, once, twice in (("new", (1, 0), (2, 0)), ("replayed", (LITTLE, 1), (LITTLE, 2))):
        wanted = 2 * weighed(*once)
        # A tolerance, because a strategy may also use the weights for an estimate, such as the frequency of classes.
        check.that(
            (weighed(*twice) - wanted).norm() <= wanted.norm() / 4 + 1e-4,
            f"{name} samples with twice the weights do not give twice the gradient; return the weights of the step "
            "unchanged, without dividing them by their sum",
        )


def _check_sums(check: Checking, kind: type[Strategy]) -> None:
    scene = _Scene(kind)
    step = scene.step(0)

    def sums(samples: slice) -> Tensor | None:
        part = step._replace(stream=step.stream.at(samples), replay=step.replay.at(samples))
        found = check.call("sums()", lambda: strategy.sums(part))
        check.that(found is None or isinstance(found, Tensor), "sums() must return a tensor or None")
        return found

    strategy = kind()
    whole, parts = sums(slice(8)), [sums(slice(5)), sums(slice(5, 8)), sums(slice(0))]
    for part in parts:
        check.that((part is None) == (whole is None), "sums() is None for some samples only")
        same_shape = part is None or whole is None or (part.shape, part.dtype) == (whole.shape, whole.dtype)
        check.that(same_shape, "the shape of sums() depends on the samples; it may depend on step.classes")
    if whole is not None:
        total = torch.stack([part for part in parts if part is not None]).sum(0)
        check.that(
            torch.allclose(total, whole), "the sums() of parts of a step do not add up to the sums() of the step"
        )


def _check_state(check: Checking, kind: type[Strategy]) -> None:
    def next_step(strategy: Strategy) -> tuple[Tensor, dict[str, Tensor]]:
        return _gradient(check, strategy, scene.step(9), "a step"), check.storable(strategy.state_dict())

    strategy, scene = kind(), _Scene(kind)
    for seed in range(3):
        _losses(check, strategy, scene.step(seed), "a step")
    before = check.storable(check.call("state_dict()", strategy.state_dict))
    check.call("losses()", lambda: strategy.losses(scene.step(2)))
    check.that(
        same_tensors(check.storable(strategy.state_dict()), before),
        "losses() changes the state, but it is called once for each shard; change it in begin(), by what sums() gives",
    )
    kept = check.call("state_dict()", strategy.state_dict)
    state = check.storable(kept)
    expected = next_step(strategy)
    check.that(same_tensors(kept, state), "a step changes what state_dict() returned before; return copies (clone())")

    incomplete = "does not restore everything that state_dict() returned"

    def continues(loaded: Strategy, problem: str) -> None:
        check.call("load_state_dict()", lambda: loaded.load_state_dict(kept))
        check.that(same_tensors(check.storable(loaded.state_dict()), state), f"load_state_dict() {incomplete}")
        gradient, after = next_step(loaded)
        check.that(same(gradient, expected[0]) and same_tensors(after, expected[1]), problem)
        check.that(same_tensors(kept, state), "a step changes the state that load_state_dict() got; keep copies")

    everything = "keep all that affects losses in state_dict(), and draw only from torch's default generator"
    continues(kind(), f"another instance that loads its state continues differently; {everything}")
    undone = "does not undo a step, which is needed after a loss that is not finite"
    continues(strategy, f"load_state_dict() {undone}; {everything}")
    for description, damaged in forged(state):
        check.refuses(lambda damaged=damaged: kind().load_state_dict(damaged), description)


def _check_retiring(check: Checking, kind: type[Strategy]) -> None:
    strategy, scene = kind(), _Scene(kind)
    for seed in range(2):
        _losses(check, strategy, scene.step(seed), "a step")
    for source, target in ((1, 0), (2, None)):
        _retire(check, strategy, source, target)
    for layer in scene.heads:
        silence(layer, [1, 2])
    scene.labels = torch.tensor([0, 3])
    what = "a step after two classes retired, whose logits are -1e30,"
    gradient = _gradient(check, strategy, scene.step(2), what)
    check.that(gradient.isfinite().all(), f"{what} gives a gradient that is not finite; leave out their logits")
    other = kind()
    check.call("load_state_dict() after retire()", lambda: other.load_state_dict(strategy.state_dict()))
    unseen = kind()
    for source, target in ((5, 6), (7, None)):
        _retire(check, unseen, source, target)


def _retire(check: Checking, strategy: Strategy, source: int, target: int | None) -> None:
    check.call(f"retire({source}, {target})", lambda: strategy.retire(source, target))
