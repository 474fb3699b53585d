"""`check_strategy` refuses strategies that break their contract, and says why."""

import time

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stream_learner.learning.strategies import Losses, Step, Strategy
from stream_learner.learning.strategies.er import ExperienceReplay
from stream_learner.learning.strategies.er_la import LogitAdjustedReplay
from stream_learner.networks.tensors import tensor
from stream_learner.testing import check_strategy


class NotDerived:
    pass


class OneLoss(Strategy):
    def losses(self, step: Step) -> Losses:
        logits = step.model(step.stream.images_NHWC)
        return Losses(F.cross_entropy(logits, step.stream.labels), step.stream.weights)


class NoTensor(Strategy):
    def losses(self, step: Step) -> Losses:
        return ExperienceReplay().losses(step).losses  # pyright: ignore[reportReturnType]


class Detached(ExperienceReplay):
    def losses(self, step: Step) -> Losses:
        losses, weights = super().losses(step)
        return Losses(losses.detach(), weights)


class NothingToLearn(ExperienceReplay):
    def losses(self, step: Step) -> Losses:
        losses, weights = super().losses(step)
        return Losses(losses * 0, weights)


class AsPrecise(Strategy):
    """Computes the loss in the precision of the network."""

    def losses(self, step: Step) -> Losses:
        both = step.stream.joined(step.replay)
        logits = step.model(both.images_NHWC)
        wanted = F.one_hot(both.labels, logits.shape[1]).to(logits)
        return Losses((logits - wanted).abs().amax(1), both.weights)


class WithoutWeights(ExperienceReplay):
    def losses(self, step: Step) -> Losses:
        losses, _ = super().losses(step)
        return Losses(losses, torch.ones_like(losses))


class WeighsReplayAlways(Strategy):
    def losses(self, step: Step) -> Losses:
        replay = step.replay
        replay = replay._replace(weights=torch.ones_like(replay.weights))
        both = step.stream.joined(replay)
        return Losses(F.cross_entropy(step.model(both.images_NHWC), both.labels, reduction="none"), both.weights)


class AllOrNothing(ExperienceReplay):
    def losses(self, step: Step) -> Losses:
        losses, weights = super().losses(step)
        return Losses(losses, (weights > 0).float())


class ReplaysAllOrNothing(ExperienceReplay):
    def losses(self, step: Step) -> Losses:
        losses, weights = super().losses(step)
        new = len(step.stream.weights)
        return Losses(losses, torch.cat([weights[:new], (weights[new:] > 0).float()]))


class OwnMean(ExperienceReplay):
    def losses(self, step: Step) -> Losses:
        losses, weights = super().losses(step)
        return Losses(losses, weights / weights.sum())


class NeedsAMemory(ExperienceReplay):
    def losses(self, step: Step) -> Losses:
        losses, weights = super().losses(step)
        return Losses(losses / step.replay.images_NHWC.float().max(), weights)


class Untaught(ExperienceReplay):
    def losses(self, step: Step) -> Losses:
        assert step.average is not None
        return super().losses(step)


class Counting(ExperienceReplay):
    """Keeps the number of steps, but not in its state."""

    steps = 0

    def losses(self, step: Step) -> Losses:
        losses, weights = super().losses(step)
        self.steps += 1
        return Losses(losses / self.steps, weights)


class ByTheClock(ExperienceReplay):
    def losses(self, step: Step) -> Losses:
        losses, weights = super().losses(step)
        return Losses(losses * (1 + time.perf_counter_ns() % 1000), weights)


class CountsSamples(ExperienceReplay):
    """Keeps the number of samples. What is wrong with its state is in the subclasses."""

    def __init__(self):
        self.total = torch.ones(1)

    def sums(self, step: Step) -> Tensor:
        return torch.tensor([float(len(step.stream.labels))])

    def begin(self, totals: Tensor) -> None:
        self.total += totals  # in place

    def losses(self, step: Step) -> Losses:
        losses, weights = super().losses(step)
        return Losses(losses / self.total.clone(), weights)

    def state_dict(self) -> dict[str, Tensor]:
        return {"total": self.total.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.total = tensor(state, "total", torch.float32, 1).clone()


class LastLosses(CountsSamples):
    """Keeps losses of a part of the samples that no step here has, an empty tensor."""

    def state_dict(self) -> dict[str, Tensor]:
        return super().state_dict() | {"rare": torch.empty(0)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        tensor(state, "rare", torch.float32, 0)


class CountsInLosses(CountsSamples):
    """Counts for each shard, and not for each step."""

    def losses(self, step: Step) -> Losses:
        self.total += 1
        return super().losses(step)


class SumsOfMeans(CountsSamples):
    def sums(self, step: Step) -> Tensor:
        return step.stream.weights.mean(0, keepdim=True).nan_to_num()


class SumsOfItsClasses(CountsSamples):
    def sums(self, step: Step) -> Tensor:
        return torch.bincount(step.stream.labels).float()


class LoadsAnyPrecision(CountsSamples):
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict({name: tensor.float() for name, tensor in state.items()})


class NoCopies(CountsSamples):
    def state_dict(self) -> dict[str, Tensor]:
        return {"total": self.total}


class KeepsTheState(CountsSamples):
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        self.total = state["total"]


class NeverLoads(CountsSamples):
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        pass


class LoadsAnything(CountsSamples):
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.total = state["total"].clone()


class Asserts(CountsSamples):
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        assert state["total"].shape == (1,)
        super().load_state_dict(state)


class Numbers(CountsSamples):
    def state_dict(self) -> dict[str, Tensor]:
        return {"total": float(self.total)}  # pyright: ignore[reportReturnType]


class OfFourClasses(LogitAdjustedReplay):
    def losses(self, step: Step) -> Losses:
        losses, weights = super().losses(step)
        logits = step.model(step.stream.images_NHWC)
        return Losses(losses + 0 * (logits + torch.zeros(4)).sum(), weights)


class PullsAllLogits(ExperienceReplay):
    """Also those of retired classes."""

    def losses(self, step: Step) -> Losses:
        losses, weights = super().losses(step)
        both = step.stream.joined(step.replay)
        return Losses(losses + step.model(both.images_NHWC).square().mean(1)[: len(losses)], weights)


class MovesTheNetwork(ExperienceReplay):
    def losses(self, step: Step) -> Losses:
        with torch.no_grad():
            for parameter in step.model.parameters():
                parameter *= 0.9
        return super().losses(step)


class CannotRetire(ExperienceReplay):
    def retire(self, source: int, target: int | None) -> None:
        raise IndexError(f"{source} {target}")


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (NotDerived, "a strategy is a class derived from stream_learner.Strategy"),
        (OneLoss, r"losses torch.float32 \[\] .*; both must be float32 \[N\], one value for each sample"),
        (NoTensor, r"losses\(\) returns Tensor; return Losses\(losses, weights\), two tensors"),
        (Detached, "gives losses without a gradient; compute them from step.model"),
        (NothingToLearn, "gives a gradient of 0, so that nothing is learned"),
        (AsPrecise, r"4 classes, bf16 gives losses torch.bfloat16 \[16\] .*; both must be float32"),
        (WithoutWeights, "a new sample of weight 0 changes the gradient; multiply by the weights of the step"),
        (WeighsReplayAlways, "a replayed sample of weight 0 changes the gradient"),
        (AllOrNothing, "new samples with twice the weights do not give twice the gradient; return the weights"),
        (ReplaysAllOrNothing, "replayed samples with twice the weights do not give twice the gradient"),
        (OwnMean, "new samples with twice the weights do not give twice the gradient"),
        (NeedsAMemory, r"losses\(\) of a step with 8 new and 0 replayed samples, 4 classes, fp32.*; raised"),
        (Untaught, "without average, as `distils` is False;.* raised AssertionError"),
        (Counting, "another instance that loads its state continues differently; keep all that affects losses"),
        (ByTheClock, r"losses\(\) differs between two new instances for the same step; draw only from torch's default"),
        (NoCopies, r"a step changes what state_dict\(\) returned before; return copies"),
        (CountsInLosses, r"losses\(\) changes the state, but it is called once for each shard; change it in begin\(\)"),
        (SumsOfMeans, r"the sums\(\) of parts of a step do not add up to the sums\(\) of the step"),
        (SumsOfItsClasses, r"the shape of sums\(\) depends on the samples; it may depend on step.classes"),
        (KeepsTheState, r"a step changes the state that load_state_dict\(\) got; keep copies"),
        (NeverLoads, r"load_state_dict\(\) does not restore everything that state_dict\(\) returned"),
        (LoadsAnything, r"accepts a state whose total has the shape \[1, 1\]; check .* and raise ValueError"),
        (LoadsAnyPrecision, "accepts a state whose total is torch.float64; check the names, types"),
        (Asserts, r"of a state whose total has the shape \[1, 1\] raised AssertionError: .*; raise ValueError"),
        (Numbers, r"state_dict\(\) must return a dict of names to tensors; 'total' is \d"),
        (OfFourClasses, r"6 classes, fp32.*; raised RuntimeError"),
        (PullsAllLogits, "a step after two classes retired, whose logits are -1e30, gives losses that are not finite"),
        (MovesTheNetwork, "changes the network or its average"),
        (CannotRetire, r"retire\(1, 0\) raised IndexError: 1 0"),
    ],
)
def test_it_is_refused(wrong, why):
    with pytest.raises(AssertionError, match=f"(?s)^{wrong.__name__}: .*{why}"):
        check_strategy(wrong)


@pytest.mark.parametrize("right", [CountsSamples, LastLosses])
def test_a_strategy_with_a_state_of_its_own_passes(right):
    check_strategy(right)
