import math

import torch
from torch import Tensor, nn

from stream_learner.learning.parallel import Parallel
from stream_learner.learning.strategies import Losses
from stream_learner.learning.trainers.passes import Passes
from stream_learner.learning.weighting import WeightedLoss

SAMPLES = [3, 0, 1, 4]  # of each shard


class Layouts(nn.Module):
    """Parameters of several memory layouts, one that nothing uses, and buffers that change."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
        self.columns = nn.Parameter(torch.randn(4, 9)[:, :5])
        self.transposed = nn.Parameter(torch.randn(2, 5).T)
        self.unused = nn.Parameter(torch.randn(3))
        self.mean = nn.Buffer(torch.zeros(3))
        self.calls = nn.Buffer(torch.zeros((), dtype=torch.int64))
        self.narrow = nn.Buffer(torch.full((2,), 40_000.0, dtype=torch.float16))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        with torch.no_grad():
            self.mean += x_NCHW.mean((0, 2, 3))
            self.calls += 1
            self.narrow -= 32
        return self.conv(x_NCHW).mean((2, 3)) @ self.columns @ self.transposed


def passed(shards: list[tuple[Tensor, Tensor]]) -> tuple[Layouts, float]:
    """Return a network after the passes of shards, each with images and weights, and the loss."""
    model = Layouts()
    passes = Passes(model.parameters(), model.buffers(), WeightedLoss(mean=2.0), Parallel(len(shards)))
    for shard, (x_NCHW, weights) in enumerate(shards):
        if len(weights):
            passes.learn(shard, Losses(model(x_NCHW).square().sum(1), weights))
    return model, float(passes.total())


def test_shards_have_the_gradients_of_one_shard_with_all_samples():
    images_NCHW, weights = torch.randn(sum(SAMPLES), 3, 5, 5), torch.rand(sum(SAMPLES))
    # Weights may depend on the network.
    of_shards = [part.clone().requires_grad_() for part in weights.split(SAMPLES)]
    several, loss = passed([*zip(images_NCHW.split(SAMPLES), of_shards, strict=True)])
    one, expected = passed([(images_NCHW, weights)])
    torch.testing.assert_close(loss, expected)
    for (name, found), wanted in zip(several.named_parameters(), one.parameters(), strict=True):
        if name == "unused":
            assert found.grad is None
        else:
            assert found.grad is not None
            torch.testing.assert_close(found.grad, wanted.grad)
            assert found.grad.stride() == torch.empty_like(found).stride()  # the layout of the optimizer's moments
    torch.testing.assert_close(several.mean, one.mean)
    assert several.calls == one.calls == 1
    assert several.narrow.tolist() == one.narrow.tolist() == [39_968.0, 39_968.0]


def test_gradients_of_shards_are_as_large_as_those_of_one():
    """Gradients in float16 would otherwise overflow before they are divided by the weights."""
    images_NCHW, weights = torch.randn(4, 3, 5, 5), torch.full((4,), 1000.0)
    largest = []
    for count in (1, 4):
        model = Layouts()
        model.conv.weight.register_post_accumulate_grad_hook(lambda p: largest.append(float(p.grad.abs().max())))
        passes = Passes(model.parameters(), model.buffers(), WeightedLoss(mean=4000.0), Parallel(count))
        for shard, (x_NCHW, own) in enumerate(zip(images_NCHW.chunk(count), weights.chunk(count), strict=True)):
            passes.learn(shard, Losses(model(x_NCHW).square().sum(1), own))
        passes.total()
    assert max(largest[1:]) <= 4 * largest[0]


def test_a_loss_that_is_not_finite_is_reported_beside_complex_buffers():
    model = nn.Linear(2, 2)
    model.phase = nn.Buffer(torch.ones(2, dtype=torch.complex64))
    passes = Passes(model.parameters(), model.buffers(), WeightedLoss(mean=2.0), Parallel(2))
    for shard in range(2):
        passes.learn(shard, Losses(model(torch.full((1, 2), torch.nan)).sum(1), torch.ones(1)))
    assert math.isnan(float(passes.total()))
