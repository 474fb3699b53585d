import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from stream_learner.learning.growth import grow_head, start_moments
from stream_learner.learning.muon import Muon
from stream_learner.networks.small import MLP

OLD, NEW = 3, 7
LR = 0.01


def network(classes: int = OLD) -> MLP:
    torch.manual_seed(0)
    return MLP(classes, height=4, width=4, channels=1, mean=[0.5], std=[0.25])


def optimizer(kind: str, parameters, **options) -> Optimizer:
    if kind == "sgd":
        return SGD(parameters, LR, momentum=0.9, fused=True, **options)
    if kind == "muon":  # which heads of networks are not moved by
        return Muon(parameters, [], LR, momentum=0.9, **{"weight_decay": 0.0} | options)
    return Adam(parameters, LR, fused=True, **options)


def fill_gradients(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)


def step(model: nn.Module, by: Optimizer) -> None:
    fill_gradients(model)
    by.step()


def moments(by: Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    return {key: moment.clone() for key, moment in by.state[parameter].items()}


@pytest.mark.parametrize("kind", ["adam", "sgd", "muon"])
def test_old_rows_keep_their_values_and_moments_and_new_rows_start_at_zero(kind):
    model = network()
    opt = optimizer(kind, model.parameters())
    for _ in range(5):
        step(model, opt)
    old = {name: p.detach().clone() for name, p in model.named_parameters()}
    old_moments = {name: moments(opt, p) for name, p in model.named_parameters()}
    grow_head(model, opt, NEW)
    assert model.head.out_features == NEW
    assert opt.param_groups[0]["params"] == list(model.parameters())
    assert len(opt.state) == len(old)
    for name, parameter in model.named_parameters():
        known = old[name].shape[0]
        assert torch.equal(parameter[:known], old[name])
        for key, moment in moments(opt, parameter).items():
            before = old_moments[name][key]
            if before.ndim == 0:
                assert torch.equal(moment, before)
            else:
                assert moment.shape == parameter.shape
                assert torch.equal(moment[:known], before)
                assert not moment[known:].any()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("steps_before", [1, 2, 50])
@pytest.mark.parametrize("kind", ["adam", "sgd", "muon"])
def test_the_first_update_of_new_rows_is_that_of_a_new_optimizer(kind, steps_before, weight_decay):
    model = network()
    opt = optimizer(kind, model.parameters(), weight_decay=weight_decay)
    for _ in range(steps_before):
        step(model, opt)
    grow_head(model, opt, NEW)
    fill_gradients(model)
    fresh = [nn.Parameter(p.detach()[OLD:].clone()) for p in (model.head.weight, model.head.bias)]
    for new, grown in zip(fresh, (model.head.weight, model.head.bias), strict=True):
        assert grown.grad is not None
        new.grad = grown.grad[OLD:].clone()
    start_moments(opt, model.head, [*range(OLD, NEW)])
    opt.step()
    optimizer(kind, fresh, weight_decay=weight_decay).step()
    for new, grown in zip(fresh, (model.head.weight, model.head.bias), strict=True):
        assert torch.allclose(grown[OLD:], new, rtol=0, atol=LR * 1e-3)


@pytest.mark.parametrize("kind", ["adam", "sgd", "muon"])
def test_old_rows_go_on_as_if_nothing_had_grown(kind):
    grown, plain = network(), network()
    grown_opt, plain_opt = (optimizer(kind, model.parameters()) for model in (grown, plain))
    for classes in (OLD, NEW, NEW + 1):
        first_row = grown.head.out_features
        if classes > first_row:
            grow_head(grown, grown_opt, classes)
        fill_gradients(grown)
        for mine, theirs in zip(plain.parameters(), grown.parameters(), strict=True):
            assert theirs.grad is not None
            mine.grad = theirs.grad[: len(mine)].clone()
        start_moments(grown_opt, grown.head, [*range(first_row, classes)])
        grown_opt.step()
        plain_opt.step()
    for mine, theirs in zip(plain.parameters(), grown.parameters(), strict=True):
        assert torch.equal(mine, theirs[: len(mine)])


def test_a_head_grows_from_nothing():
    model = network(classes=0)
    opt = optimizer("adam", model.parameters())
    assert model(torch.zeros(2, 4, 4, 1, dtype=torch.uint8)).shape == (2, 0)
    grow_head(model, opt, 2)
    assert model(torch.zeros(2, 4, 4, 1, dtype=torch.uint8)).shape == (2, 2)
    assert model.head.weight.abs().sum() > 0
    step(model, opt)
    assert opt.state[model.head.weight]["step"] == 1
