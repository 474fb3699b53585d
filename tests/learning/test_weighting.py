import pytest
import torch
from digit_stream import TARGETS, batch, digits_of, learned, position, settings, tensors_of
from torch import nn
from torch.nn import functional as F

from stream_learner.learning.strategies.step import cross_entropy
from stream_learner.learning.weighting import WeightedLoss
from stream_learner.learning.weighting.loss import DECAY

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 0.5], [-3.0, 1.0, 4.0]])
LABELS = torch.tensor([0, 2, 1])
LOSSES = cross_entropy(LOGITS, LABELS)


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.0, 0.5, 2.0], [10.0, 10.0, 10.0]])
def test_the_formula(weights):
    weighted_loss = WeightedLoss(mean=6.0)
    weighted_loss.begin(sum(weights))
    loss = weighted_loss(LOSSES, torch.tensor(weights))
    mean = DECAY * 6.0 + (1 - DECAY) * sum(weights)
    losses = [-F.log_softmax(logits, 0)[label].item() for logits, label in zip(LOGITS, LABELS, strict=True)]
    wanted = sum(w * one for w, one in zip(weights, losses, strict=True)) / max(sum(weights), mean)
    assert loss.item() == pytest.approx(wanted, rel=1e-6)
    assert weighted_loss.mean == pytest.approx(mean)


def test_a_full_batch_of_weight_one_is_the_mean_cross_entropy():
    weighted_loss = WeightedLoss(mean=3.0)
    weighted_loss.begin(3.0)
    loss = weighted_loss(LOSSES, torch.ones(3))
    assert loss.item() == pytest.approx(F.cross_entropy(LOGITS, LABELS).item())


def test_the_mean_follows_the_stream():
    weighted_loss = WeightedLoss(mean=32.0)
    for _ in range(2000):
        weighted_loss.begin(6.0)
    assert weighted_loss.mean == pytest.approx(6.0)


def gradient(images: torch.Tensor, labels: list[int], weights: list[float]) -> torch.Tensor:
    torch.manual_seed(0)
    layer = nn.Linear(images.shape[1], 3)
    losses = cross_entropy(layer(images), torch.tensor(labels))
    weighted_loss = WeightedLoss(mean=50.0)
    weighted_loss.begin(sum(weights))
    weighted_loss(losses, torch.tensor(weights)).backward()
    assert layer.weight.grad is not None
    return layer.weight.grad


def test_weight_two_is_the_sample_twice():
    images = torch.randn(2, 5, generator=torch.Generator().manual_seed(1))
    once = gradient(images, [0, 1], [1.0, 2.0])
    twice = gradient(images[[0, 1, 1]], [0, 1, 1], [1.0, 1.0, 1.0])
    assert torch.allclose(once, twice, rtol=1e-5)
    assert not torch.allclose(once, gradient(images, [0, 1], [1.0, 1.0]), rtol=1e-2)


def test_a_sample_of_weight_zero_is_not_there():
    images = torch.randn(2, 5, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(gradient(images, [0, 1], [1.0, 0.0]), gradient(images[:1], [0], [1.0]))


def test_a_batch_of_low_weight_moves_the_model_less():
    """The whole batch comes from one producer: its weight must not cancel out."""
    given = settings(learning__strategy="finetune", learning__optimizer="sgd", learning__momentum=0.0)

    def move(weight: float) -> float:
        learner = learned(given, [batch(digits_of(range(10), 20))])
        before = tensors_of(learner.snapshot())
        learner.learn(batch(digits_of(range(10), 8, skip=30), first=position(learner), weights=[weight]))
        after = tensors_of(learner.snapshot())
        return sum(float((after[k] - before[k]).norm()) for k in after if k.startswith("trainer/model/body"))

    assert move(0.1) == pytest.approx(0.1 * move(1.0), rel=0.02)
    assert move(0.1) < move(0.5) < move(1.0)


@pytest.mark.parametrize("optimizer", ["muon", "sgd", "adam"])
def test_a_producer_of_low_weight_moves_the_model_less_for_as_long_as_it_is_alone(optimizer):
    rate = {"muon": 0.005, "sgd": 0.05, "adam": 0.001}[optimizer]
    given = settings(learning__strategy="finetune", learning__optimizer=optimizer, learning__learning_rate=rate)

    def move(weight: float) -> float:
        learner = learned(given, [batch(digits_of(range(10), 8, skip=i), first=8 * i) for i in range(25)])
        before = tensors_of(learner.snapshot())
        for i in range(20):
            drawn = digits_of(range(10), 8, skip=40 + i)
            labels = [str((TARGETS[digit] + 1) % 10) for digit in drawn]
            learner.learn(batch(drawn, position(learner), labels, weights=[weight]))
        after = tensors_of(learner.snapshot())
        return sum(float((after[k] - before[k]).norm()) for k in after if k.startswith("trainer/model/body"))

    assert move(0.01) < 0.6 * move(1.0)  # Adam coasts on what came before


def test_half_precision_logits_are_scored_in_single():
    half = (0.3 * LOGITS).bfloat16()
    assert cross_entropy(half, LABELS).dtype == torch.float32
    assert torch.equal(cross_entropy(half, LABELS), F.cross_entropy(half.float(), LABELS, reduction="none"))
