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

    def forward(self, x_NCHW: Tensor) -> Tensor:
        with torch.no_grad():
            self.mean += x_NCHW.mean((0, 2, 3))
            self.calls += 1
        return self.conv(x_NCHW).mean((2, 3)) @ self.columns @ self.transposed


def passed(shards: list[tuple[Tensor, Tensor]]) -> tuple[Layouts, float]:
    """Return a network after the passes of shards, each with images and weights, and the loss."""
    model = Layouts()
    passes = Passes(model, WeightedLoss(mean=2.0), Parallel(len(shards)))
    for shard, (x_NCHW, weights) in enumerate(shards):
        if len(weights):
            passes.learn(shard, Losses(model(x_NCHW).square().sum(1), weights))
    return model, float(passes.total())


def test_shards_have_the_gradients_of_one_shard_with_all_samples():
    images_NCHW, weights = torch.randn(sum(SAMPLES), 3, 5, 5), torch.rand(sum(SAMPLES))
    several, loss = passed([*zip(images_NCHW.split(SAMPLES), weights.split(SAMPLES), strict=True)])
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
