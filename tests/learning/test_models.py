import re
import sys
from typing import Literal

import numpy as np
import pytest
import torch
from digit_stream import DIGITS_NHWC, LARGE, MODELS, driver_of, settings
from msgspec.structs import replace
from torch import nn

from stream_learner import networks as models
from stream_learner.contract.manifest import ModelArguments, ModelSpec
from stream_learner.errors import StateError, UsageError
from stream_learner.learning.evaluation import own_probabilities, predict, score
from stream_learner.learning.placement import place
from stream_learner.learning.process import set_up_torch
from stream_learner.networks.small import MLP

CPU = torch.device("cpu")


def spec(name: str, height: int = 9, width: int = 9, channels: Literal[1, 3] = 1, classes: int = 10) -> ModelSpec:
    arguments = ModelArguments(classes=classes, height=height, width=width, channels=channels, mean=[0.5], std=[0.25])
    return ModelSpec(name, arguments)


@pytest.mark.parametrize(
    ("name", "features"),
    {"mlp": 64, "cnn": 128, "rnn": 128, "resnet18_slim": 160, "resnet18": 512, "resnet50": 2048}.items(),
)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_head_sees_features(name, features, channels):
    side = LARGE.get(name, 9)
    network = models.build(spec(name, side, side, channels)).eval()
    images = torch.randint(0, 256, (2, side, side, channels), dtype=torch.uint8)
    assert network.features(images).shape == (2, network.head.in_features) == (2, features)
    assert torch.equal(network.head(network.features(images)), network(images))


def test_the_recurrent_network_reads_rows_from_top_to_bottom():
    network = models.build(spec("rnn", 9, 7, 3))
    images = torch.randint(0, 256, (2, 9, 7, 3), dtype=torch.uint8)
    cell = torch.nn.GRUCell(7 * 3, 128)
    cell.load_state_dict(
        {key.removeprefix("gru.").removesuffix("_l0"): t for key, t in network.body.state_dict().items()}
    )
    hidden = torch.zeros(2, 128)
    for row in range(9):
        hidden = cell((images[:, row].flatten(1) / 255 - 0.5) / 0.25, hidden)
    assert torch.allclose(network.features(images), hidden, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(32, 48), (64, 64)])
def test_networks_of_timm_take_the_models_images(height, width):
    images = torch.randint(0, 256, (2, height, width, 1), dtype=torch.uint8)
    for name in ("timm:test_vit", "timm:test_efficientnet.r160_in1k", "timm:test_convnext"):
        network = models.build(spec(name, height, width))
        assert network(images).shape == (2, 10)
        assert network.features(images).shape == (2, network.head.in_features)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_normalises_by_its_own_constants(name):
    one = spec(name, channels=3)
    network = models.build(one)
    each = models.build(ModelSpec(name, replace(one.arguments, mean=[0.5] * 3, std=[0.25] * 3)))
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
    ("name", "side", "why"),
    [
        ("resnet18", 32, "Expected more than 1 value per channel"),
        ("resnet50", 32, "Expected more than 1 value per channel"),
        ("timm:test_resnet", 32, "Expected more than 1 value per channel"),
        ("timm:test_vit", 33, "should be divisible by patch size"),
    ],
)
def test_images_that_a_network_of_others_cannot_learn_are_refused(name, side, why):
    with pytest.raises(UsageError, match=f"{name} cannot learn from images of {side} x {side}; choose another.*{why}"):
        models.build(spec(name, side, side))


@pytest.mark.parametrize(
    ("name", "library", "extra"),
    [("resnet18", "torchvision", "vision"), ("resnet50", "torchvision", "vision"), ("timm:test_vit", "timm", "timm")],
)
def test_a_missing_library_is_told_with_the_extra_that_brings_it(monkeypatch, name, library, extra):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UsageError, match=rf'{name}.* needs {library}.*: pip install "stream-learner\[{extra}\]"'):
        models.build(spec(name, 64, 64))


@pytest.mark.parametrize(
    ("setting", "wrong", "problem"),
    [
        ("model__name", "timm:test_vitt", r"timm .* has no such network; did you mean timm:test_vit\?"),
        ("model__name", "timm:hf-hub:owner/name", "timm .* has no such network"),
        ("learning__strategy", "not_there:Replay", "learning.strategy = 'not_there:Replay' cannot be imported"),
        ("learning__device", "abacus", "learning.device = 'abacus' cannot be used"),
        ("learning__device", "cuda:99", "learning.device = 'cuda:99' cannot be used"),
    ],
)
def test_what_is_not_there_is_refused(setting, wrong, problem):
    with pytest.raises(UsageError, match=problem) as caught:
        driver_of(settings(**{setting: wrong}))
    assert "\n" not in str(caught.value)


class Flat(MLP):
    """A model of a user's own."""


def test_a_model_of_ones_own_is_reached_by_its_path():
    own = f"{__name__}:Flat"
    assert isinstance(models.build(spec(own), own=own), Flat)
    assert driver_of(settings(model__name=f"{__name__}:Flat")).snapshot().document["model"]["name"].endswith(":Flat")


class Halved(MLP):
    """A network with a buffer of a type that NumPy lacks."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.register_buffer("scale", torch.ones(1, dtype=torch.bfloat16))


def test_a_network_that_a_state_cannot_hold_is_refused_before_anything_is_learned():
    with pytest.raises(UsageError, match=r"Halved.*: scale is torch.bfloat16, .* use float32"):
        driver_of(settings(model__name=f"{__name__}:Halved"))


def test_placement_resolves_auto_by_the_model():
    automatic = settings(learning__device="cpu").learning
    assert place(automatic, models.factory("mlp")).autocast is False
    assert place(automatic, models.factory("mlp")).memory_format is torch.contiguous_format
    assert place(automatic, models.factory("cnn")).memory_format is torch.channels_last
    assert place(automatic, models.factory("timm:test_vit")).memory_format is torch.channels_last
    for precision, autocast in (("fp32", False), ("bf16", True)):
        chosen = settings(learning__precision=precision, learning__channels_last=False).learning
        assert place(chosen, models.factory("cnn")).autocast is autocast
        assert place(chosen, models.factory("cnn")).memory_format is torch.contiguous_format


def test_denormal_numbers_count_as_zero():
    torch.set_flush_denormal(False)
    assert (torch.full((8,), 1e-39) * 1.0).all()
    set_up_torch(settings())
    assert not (torch.full((8,), 1e-39) * 1.0).any()


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


def by_a_function(**arguments) -> models.ImageClassifier:
    return MLP(**arguments)


def by_mistake(**arguments) -> nn.Module:
    return nn.Linear(arguments["height"], arguments["classes"])


def of_other_arguments(height: int) -> models.ImageClassifier:
    raise NotImplementedError(height)


def never_called(**_) -> models.ImageClassifier:
    pytest.fail("a manifest's name was called")


def test_a_function_of_ones_own_makes_a_classifier_or_is_refused():
    def build(own: str) -> models.ImageClassifier:
        return models.build(spec(own, 8, 8, classes=2), own=own)

    network = build(f"{__name__}:by_a_function")
    assert network(torch.zeros(3, 8, 8, 1, dtype=torch.uint8)).shape == (3, 2)
    with pytest.raises(UsageError, match=r"by_mistake' must return a stream_learner.ImageClassifier"):
        build(f"{__name__}:by_mistake")
    with pytest.raises(
        UsageError, match=r"of_other_arguments' cannot be called with classes, height, .*std: .*'classes'"
    ):
        build(f"{__name__}:of_other_arguments")
    for name in (":by_a_function", ".relative:by_a_function"):
        with pytest.raises(UsageError, match=r"is not of the form `package\.module:name`"):
            build(name)


@pytest.mark.parametrize(
    ("name", "own"),
    [
        (f"{__name__}:never_called", None),
        (f"{__name__}:never_called", f"{__name__}:by_a_function"),
        ("os:system", "cnn"),
        ("not_there", None),
        ("", None),
    ],
)
def test_a_name_from_outside_the_registry_is_not_imported(name, own):
    with pytest.raises(StateError, match=re.escape(f"the network {name!r} is not part of this program")):
        models.build(spec(name), own=own)
