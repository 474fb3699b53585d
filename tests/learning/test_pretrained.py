"""A backbone loaded from a file, and a frozen backbone."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
import torchvision
from digit_stream import DIGITS_NHWC, as_bytes, decided, driver_of, learned, resumed, settings, stream, tensors_of
from safetensors.torch import save_file
from torch import Tensor, nn

from stream_learner import networks as models
from stream_learner.contract.manifest import ModelArguments, ModelSpec
from stream_learner.errors import UsageError
from stream_learner.networks.weights import load_body

Tensors = dict[str, Tensor]


def build(name: str, side: int = 9, channels: Literal[1, 3] = 1, classes: int = 10) -> models.ImageClassifier:
    arguments = ModelArguments(classes=classes, height=side, width=side, channels=channels, mean=[0.5], std=[0.25])
    return models.build(ModelSpec(name, arguments), own=name).eval()


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: t for key, t in tensors.items() if not key.endswith(name)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "backbone.safetensors"


@pytest.fixture
def pretrained(path: Path) -> models.ImageClassifier:
    """A network that has learned, its body in the file at `path`."""
    snapshot = learned(settings(model__name="resnet18_slim"), stream()).snapshot()
    network = build("resnet18_slim")
    prefix = "trainer/model/"
    network.load_state_dict(
        {name.removeprefix(prefix): t for name, t in tensors_of(snapshot).items() if name.startswith(prefix)}
    )
    save_file(network.body.state_dict(), path)
    return network


@pytest.mark.parametrize(
    "contents",
    [
        lambda network: network.state_dict(),
        lambda network: network.body.state_dict(),
        lambda network: network.body.state_dict() | {"fc.weight": torch.zeros(7, 160), "fc.bias": torch.zeros(7)},
        lambda network: without("num_batches_tracked")(network.body.state_dict()),
        lambda network: {name: t.double() for name, t in network.body.state_dict().items()},
    ],
    ids=["network", "body", "another head", "without counters", "another type"],
)
def test_a_file_of_a_network_gives_its_features(pretrained, path, contents):
    save_file(contents(pretrained), path)
    network = build("resnet18_slim", classes=3)
    head = network.head.weight.clone()
    load_body(network, path)
    images = torch.from_numpy(DIGITS_NHWC[:50])
    assert torch.equal(network.features(images), pretrained.features(images))
    assert torch.equal(network.head.weight, head)


def of_torchvision(name: str) -> nn.Module:
    return getattr(torchvision.models, name)()


def of_timm(name: str) -> nn.Module:
    import timm  # which takes seconds, in every process that collects the tests

    return timm.create_model(name.removeprefix("timm:"), pretrained=False)


@pytest.mark.parametrize(
    ("name", "original"),
    [
        ("resnet18", of_torchvision),
        ("resnet50", of_torchvision),
        ("timm:test_resnet", of_timm),
        ("timm:test_convnext", of_timm),  # its head is in a module beside a layer of its body
        ("timm:resnet18", lambda _: of_torchvision("resnet18")),
    ],
)
def test_a_file_of_torchvision_or_timm_gives_its_predictions(path, name, original):
    whole = original(name).eval()
    save_file(whole.state_dict(), path)
    network = build(name, side=64, channels=3)
    load_body(network, path)
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    head = next(module for module in whole.modules() if isinstance(module, nn.Linear) and module.out_features == 1000)
    expected = whole((images.permute(0, 3, 1, 2) / 255 - 0.5) / 0.25)
    assert torch.allclose(head(network.features(images)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            without("0.weight"),
            "has no 0.weight, which this model.name needs; it has 1.bias, 1.num_batches_tracked, 1.run",
        ),
        (
            lambda tensors: tensors | {"0.weight": torch.zeros(20, 3, 3, 3)},
            r"0.weight is \[20, 3, 3, 3\] in .*, but this model.name, model.height, model.width and model.channels "
            r"need \[20, 1, 3, 3\]",
        ),
        (
            lambda tensors: tensors | {"3.residual.6.weight": torch.zeros(20), "fc.weight": torch.zeros(7, 160)},
            "has layers that this model.name lacks: 3.residual.6, fc",
        ),
        (
            lambda tensors: (
                {f"body.{key}": t for key, t in tensors.items()} | {"body.3.residual.6.weight": torch.ones(1)}
            ),
            "has layers that this model.name lacks: body.3.residual.6",
        ),
    ],
    ids=["missing", "shape", "surplus", "surplus beside a head"],
)
@pytest.mark.usefixtures("pretrained")
def test_a_file_of_another_network_is_refused(path, change, problem):
    save_file(change(dict(build("resnet18_slim").body.state_dict())), path)
    with pytest.raises(UsageError, match=problem):
        driver_of(settings(model__name="resnet18_slim", model__weights=path))


def test_a_deeper_network_of_the_same_family_is_another_one(path):
    save_file(of_torchvision("resnet34").state_dict(), path)
    with pytest.raises(UsageError, match=r"has layers that this model.name lacks: fc, layer1.2.bn1, layer1.2.bn2"):
        load_body(build("resnet18", side=33, channels=3), path)


def test_a_file_that_cannot_be_read_is_refused(path):
    with pytest.raises(UsageError, match=r"model.weights: cannot read .*: No such file"):
        driver_of(settings(model__weights=path))
    path.write_bytes(b"a pickle, perhaps")
    with pytest.raises(UsageError, match=r"model.weights: .* is not a safetensors file"):
        driver_of(settings(model__weights=path))


def test_learning_begins_with_the_file_and_goes_on_without_it(pretrained, path):
    chosen = settings(model__name="resnet18_slim", model__weights=path)
    first = tensors_of(driver_of(chosen).snapshot())
    assert all(torch.equal(first[f"trainer/model/body.{name}"], t) for name, t in pretrained.body.state_dict().items())
    whole = learned(chosen, stream())
    half = learned(chosen, stream()[:5])
    restarted = resumed(chosen, half.snapshot())
    assert as_bytes(restarted.snapshot()) == as_bytes(half.snapshot())
    for b in stream()[5:]:
        restarted.learn(b)
    assert as_bytes(restarted.snapshot()) == as_bytes(whole.snapshot())


@pytest.mark.usefixtures("pretrained")
def test_a_run_stays_with_the_file_that_it_began_with(path, tmp_path):
    snapshot = learned(settings(model__name="resnet18_slim", model__weights=path), stream()[:2]).snapshot()
    moved = path.rename(tmp_path / "moved.safetensors")
    resumed(settings(model__name="resnet18_slim", model__weights=moved), snapshot)
    for other in (None, path):
        save_file(build("resnet18_slim").body.state_dict(), path)
        with pytest.raises(ValueError, match=r"its model.weights is 'sha256:\w{64}', the settings say"):
            resumed(settings(model__name="resnet18_slim", model__weights=other), snapshot)


@pytest.mark.parametrize("name", ["cnn", "resnet18_slim"])
@pytest.mark.parametrize("strategy", ["finetune", "er"])
def test_a_frozen_backbone_stays_byte_for_byte_while_the_head_learns(name, strategy):
    chosen = settings(model__name=name, model__freeze=True, learning__strategy=strategy, learning__weight_decay=0.1)
    before = driver_of(chosen).snapshot().tensors
    driver = learned(chosen, stream())
    after = decided(driver)
    bodies = [key for key in before if key.startswith("trainer/model/body.")]
    assert bodies
    assert all(before[key].tobytes() == tensors_of(after)[key].numpy().tobytes() for key in bodies)
    shapes = {tuple(t.shape) for key, t in tensors_of(after).items() if key.endswith("/exp_avg")}
    assert shapes == {(10,), tuple(tensors_of(after)["trainer/model/head.weight"].shape)}  # only the head's moments
    assert all(t.abs().max() > 0 for key, t in tensors_of(after).items() if key.endswith("/exp_avg"))


def test_a_frozen_backbone_stays_in_evaluation_mode_and_records_no_gradient():
    network = build("resnet18_slim").train()
    network.freeze()
    assert network.training
    assert not any(module.training for module in network.body.modules())
    assert not network.train().body.training
    images = torch.from_numpy(DIGITS_NHWC[:20])
    features = network.features(images)
    assert not features.requires_grad
    assert torch.equal(features, network.eval().features(images))
    assert network.train()(images).requires_grad


def test_a_frozen_backbone_takes_batches_that_its_normalisation_would_refuse():
    """One value for each channel, which batch normalisation cannot learn from."""
    network = build("resnet18_slim").train()
    network.freeze()
    assert network(torch.zeros(1, 5, 5, 1, dtype=torch.uint8)).shape == (1, 10)
