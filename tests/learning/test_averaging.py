import copy

import torch
from torch import nn

from stream_learner import networks as models
from stream_learner.contract.manifest import ModelArguments, ModelSpec
from stream_learner.learning.averaging import Average

DECAY = 0.3


def network(classes: int) -> models.ImageClassifier:
    torch.manual_seed(0)
    arguments = ModelArguments(classes=classes, height=16, width=16, channels=1, mean=[0.5], std=[0.25])
    return models.build(ModelSpec("resnet18_slim", arguments))


def moved(model: nn.Module, by: float) -> None:
    for tensor in model.state_dict().values():
        tensor.add_(by if tensor.is_floating_point() else 1)


def test_weights_and_buffers_follow_with_a_decay_that_rises_to_its_own():
    model = network(3)
    average = Average(model, DECAY)
    expected = copy.deepcopy(model.state_dict())
    for step in range(4):
        moved(model, by=1.0)
        average.update(model)
        decay = min(DECAY, (1 + step) / (10 + step))
        for name, latest in model.state_dict().items():
            mean = decay * expected[name] + (1 - decay) * latest
            expected[name] = mean if latest.is_floating_point() else latest.clone()
    assert min(DECAY, 4 / 13) == DECAY  # it has risen to it, and was below before: 1 / 10, 2 / 11, 3 / 12
    for name, tensor in average.model.state_dict().items():
        assert torch.allclose(tensor.float(), expected[name].float(), atol=1e-5), name
    assert any("running_mean" in name for name in expected)
    assert not average.model.training


def test_infinities_of_a_buffer_stay():
    model = network(2)
    model.body.register_buffer("mask", torch.tensor([-torch.inf, 0.0, torch.inf]))
    average = Average(model, DECAY)
    for _ in range(3):
        average.update(model)
    assert average.model.body.get_buffer("mask").tolist() == [-torch.inf, 0.0, torch.inf]


def test_new_rows_are_the_heads_and_old_ones_stay_the_averages():
    model = network(2)
    average = Average(model, DECAY)
    old = copy.deepcopy(average.model.head)
    moved(model, by=1.0)
    grown = models.head(old.in_features, 4)
    with torch.no_grad():
        grown.weight[:2], grown.bias[:2] = model.head.weight, model.head.bias
    average.grow(grown)
    head = average.model.head
    assert head.out_features == 4
    assert torch.equal(head.weight[:2], old.weight)
    assert torch.equal(head.bias[:2], old.bias)
    assert torch.equal(head.weight[2:], grown.weight[2:])
    assert torch.equal(head.bias[2:], grown.bias[2:])
    assert not head.weight.requires_grad
