import numpy as np
import pytest
import torch
from digit_stream import DIGITS_NHWC, settings

from stream_learner.errors import UsageError
from stream_learner.learning import models
from stream_learner.learning.evaluation import own_probabilities, predict, score
from stream_learner.learning.learner import Learner
from stream_learner.learning.models import MODELS
from stream_learner.learning.placement import place
from stream_learner.records.manifest import ModelSpec

CPU = torch.device("cpu")


def spec(name: str, height: int = 9, width: int = 9, channels: int = 1, classes: int = 10) -> ModelSpec:
    arguments = {"classes": classes, "height": height, "width": width, "channels": channels}
    return ModelSpec(name, arguments | {"mean": [0.5], "std": [0.25]})


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("height", "width", "channels"), [(9, 9, 1), (32, 32, 3), (12, 17, 3)])
def test_uint8_images_become_logits(name, height, width, channels):
    network = models.build(spec(name, height, width, channels))
    images = torch.randint(0, 256, (4, height, width, channels), dtype=torch.uint8)
    logits = network(images)
    assert (logits.shape, logits.dtype) == ((4, 10), torch.float32)
    logits.sum().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_a_model_normalises_by_its_own_constants(name):
    one = spec(name, channels=3)
    network = models.build(one)
    each = models.build(ModelSpec(name, one.arguments | {"mean": [0.5] * 3, "std": [0.25] * 3}))
    each.load_state_dict(network.state_dict() | {"mean": each.mean, "std": each.std})
    images = torch.randint(0, 256, (4, 9, 9, 3), dtype=torch.uint8)
    assert torch.equal(network.eval()(images), each.eval()(images))
    assert not torch.equal(network(images), network(255 - images))


@pytest.mark.parametrize(("name", "least"), [("cnn", 4), ("resnet18_slim", 9)])
def test_images_too_small_for_a_model_are_refused(name, least):
    assert models.build(spec(name, least, least))(torch.zeros(1, least, least, 1, dtype=torch.uint8)).shape == (1, 10)
    for height, width in ((least - 1, least), (least, least - 1)):
        with pytest.raises(UsageError, match=rf"at least {least} for this model, not {height} x {width}"):
            models.build(spec(name, height, width))


@pytest.mark.parametrize(
    ("setting", "wrong", "problem"),
    [
        ("model__name", "cnm", r"model.name = 'cnm' is unknown; did you mean cnn\?"),
        ("learning__strategy", "err", r"learning.strategy = 'err' is unknown; did you mean er\?"),
        ("learning__strategy", "not_there:Replay", "learning.strategy = 'not_there:Replay' cannot be imported"),
        ("learning__device", "abacus", "learning.device = 'abacus' cannot be used"),
        ("learning__device", "cuda:99", "learning.device = 'cuda:99' cannot be used"),
    ],
)
def test_what_is_not_there_is_refused(setting, wrong, problem):
    with pytest.raises(UsageError, match=problem) as caught:
        Learner(settings(**{setting: wrong}))
    assert "\n" not in str(caught.value)


class Flat(models.MLP):
    """A model of a user's own."""


def test_a_model_of_ones_own_is_reached_by_its_path():
    assert isinstance(models.build(spec(f"{__name__}:Flat")), Flat)
    assert Learner(settings(model__name=f"{__name__}:Flat")).snapshot().document["model"]["name"].endswith(":Flat")


def test_placement_resolves_auto_by_the_model():
    automatic = settings(learning__device="cpu").learning
    assert place(automatic, MODELS["mlp"]).autocast is False
    assert place(automatic, MODELS["mlp"]).memory_format is torch.contiguous_format
    assert place(automatic, MODELS["cnn"]).memory_format is torch.channels_last
    for precision, autocast in (("fp32", False), ("bf16", True)):
        chosen = settings(learning__precision=precision, learning__channels_last=False).learning
        assert place(chosen, MODELS["cnn"]).autocast is autocast
        assert place(chosen, MODELS["cnn"]).memory_format is torch.contiguous_format


@pytest.mark.parametrize("name", MODELS)
def test_predicting_draws_nothing_and_leaves_the_mode_as_it_was(name):
    network = models.build(spec(name))
    images = DIGITS_NHWC[:300]
    rng = torch.get_rng_state()
    predictions = predict(network, images, CPU)
    assert network.training
    assert torch.equal(rng, torch.get_rng_state())
    assert (predictions.dtype, predictions.shape) == (np.int64, (300,))
    assert np.array_equal(predictions, predict(network.eval(), images, CPU))
    assert not network.training
    assert predict(network, images[:0], CPU).shape == (0,)


def test_scores_count_every_class_that_has_samples():
    result = score(np.array([0, 1, 1, 5]), np.array([0, 1, 3, 3]), ["a", "b", "c", "d"])
    assert [(c.label, c.correct, c.total) for c in result.per_class] == [("a", 1, 1), ("b", 1, 1), ("d", 0, 2)]
    assert (result.accuracy, result.mean_recall) == (0.5, 2 / 3)


def test_own_probabilities_are_0_where_nothing_can_be_said():
    logits = torch.tensor([[0.0, 0.0], [1.0, 3.0], [0.0, 0.0], [torch.nan, 0.0], [torch.inf, 0.0]])
    own = own_probabilities(logits.bfloat16(), torch.tensor([0, 1, 2, 0, 1]))
    assert own.tolist() == pytest.approx([0.5, 1 / (1 + np.exp(-2)), 0, 0, 0])
    assert own.dtype == np.float32
