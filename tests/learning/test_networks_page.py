"""`docs/topics.md` is sufficient to compute with a release. This test uses the page and the written files only."""

import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from digit_stream import LARGE, LIGHT, SIDE, decided, learned, settings, stream
from torch import Tensor
from torch.nn import functional as F

from stream_learner import networks as models
from stream_learner.contract.manifest import ModelArguments, ModelSpec
from stream_learner.contract.tensors import encode
from stream_learner.networks.tensors import as_arrays
from stream_learner.registry import MODELS

PAGE = (Path(__file__).parents[2] / "docs" / "topics.md").read_text().split("\n## Networks\n")[1].split("\n## ")[0]
STEP = re.compile(r"([a-zA-Z -]+?)(?: `([\w.]+)`)?(?: (\d+))?(?: of (\d+)x\4)?((?:, [a-z]+ \w+)*)")


def table(heading: str) -> dict[str, list[str]]:
    """The cells of the table whose first column is called `heading`, by that column's."""
    _, rows = PAGE.split(f"\n| {heading} |", 1)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in rows.split("\n\n")[0].splitlines()[2:]]
    return {name: rest for name, *rest in cells}


NETWORKS, STEPS, BLOCKS = table("network"), table("step"), table("block")
EPSILON = float(re.findall(r"running_var \+ (\S+)\)", STEPS["batch normalisation `p`"][1])[0])
GATES = re.findall(r"for the gates (\w+), (\w+), (\w+), in this order", STEPS["GRU `p` U"][0])[0]


class Network:
    """A network by the page's tables, with the tensors of a release. `used` are the names of those it needed."""

    def __init__(self, name: str, tensors: dict[str, Tensor]):
        (self.steps,) = NETWORKS[f"`{name}`"]
        self.tensors = tensors
        self.used: set[str] = set()

    def logits(self, images_NHWC: Tensor) -> Tensor:
        x = ((images_NHWC.float() / 255).permute(0, 3, 1, 2) - self.tensor("mean")) / self.tensor("std")
        x = self.path(self.steps, "", x)
        if "expansion.projection" in self.tensors:
            x = (x @ self.tensor("expansion.projection")).clamp(min=0)
        return self.step("linear `head`", "", x)

    def tensor(self, name: str, *shape: int) -> Tensor:
        found = self.tensors[name]
        assert found.dtype is torch.float32
        assert not shape or found.shape == shape, f"{name} is {found.shape}, the page says {shape}"
        self.used.add(name)
        return found

    def path(self, steps: str, prefix: str, x: Tensor) -> Tensor:
        for step in steps.split("; "):
            x = self.step(step, prefix, x)
        return x

    def step(self, step: str, prefix: str, x: Tensor) -> Tensor:
        match = STEP.fullmatch(step)
        assert match, step
        kind, name, width, kernel, rest = match.groups()
        p, width = f"{prefix}{name}", int(width or 0)
        options = dict(option.split(" ") for option in rest.split(", ")[1:])
        stride, padding = (int(options.get(key, default)) for key, default in (("stride", 1), ("padding", 0)))
        match kind:
            case "flatten":
                return x.flatten(1)
            case "rows":
                return x.permute(0, 2, 3, 1).flatten(2)
            case "ReLU":
                return x.clamp(min=0)
            case "linear":
                shape = (width, x.shape[1]) if width else ()
                return x @ self.tensor(f"{p}.weight", *shape).T + self.tensor(f"{p}.bias", *shape[:1])
            case "convolution":
                weight = self.tensor(f"{p}.weight", width, x.shape[1], int(kernel), int(kernel))
                bias = self.tensor(f"{p}.bias", width) if options.get("with") == "bias" else None
                return F.conv2d(x, weight, bias, stride, padding)
            case "batch normalisation":
                names = ("weight", "bias", "running_mean", "running_var")
                weight, bias, mean, var = (self.tensor(f"{p}.{n}", x.shape[1])[:, None, None] for n in names)
                counter = self.tensors[f"{p}.num_batches_tracked"]
                assert (counter.dtype, counter.shape) == (torch.int64, ())
                self.used.add(f"{p}.num_batches_tracked")
                return (x - mean) / (var + EPSILON).sqrt() * weight + bias
            case "max-pool":
                return F.max_pool2d(x, width, int(options.get("stride", width)), padding)
            case "GRU":
                return self.gru(p, width, x)
            case "global average":
                return x.mean((2, 3))
        residual, shortcut = (
            steps.replace("4F", str(4 * width)).replace("F of", f"{width} of").replace("stride S", f"stride {stride}")
            for steps in BLOCKS[kind]
        )
        has_shortcut = any(tensor.startswith(f"{p}.{re.findall(r'`(.*?)`', shortcut)[0]}.") for tensor in self.tensors)
        around = self.path(shortcut, f"{p}.", x) if has_shortcut else x
        return (self.path(residual, f"{p}.", x) + around).clamp(min=0)

    def gru(self, p: str, units: int, rows_NHV: Tensor) -> Tensor:
        weight_ih = self.tensor(f"{p}.weight_ih_l0", 3 * units, rows_NHV.shape[2])
        weight_hh = self.tensor(f"{p}.weight_hh_l0", 3 * units, units)
        bias_ih, bias_hh = (self.tensor(f"{p}.bias_{part}_l0", 3 * units) for part in ("ih", "hh"))
        h = torch.zeros(len(rows_NHV), units)
        for x in rows_NHV.unbind(1):
            ih = dict(zip(GATES, (x @ weight_ih.T + bias_ih).split(units, 1), strict=True))
            hh = dict(zip(GATES, (h @ weight_hh.T + bias_hh).split(units, 1), strict=True))
            reset, update = ((ih[gate] + hh[gate]).sigmoid() for gate in ("reset", "update"))
            new = (ih["new"] + reset * hh["new"]).tanh()
            h = (1 - update) * new + update * h
        return h


def test_the_page_has_every_network_of_the_registry():
    assert list(NETWORKS) == [f"`{name}`" for name in MODELS]


@pytest.mark.parametrize(
    "model", [{"name": name} for name in MODELS] + [{"name": "mlp", "head": "random_features", "random_features": 80}]
)
def test_the_page_gives_a_releases_predictions(model: dict):
    side = LARGE.get(model["name"], SIDE)
    given = settings(
        **LIGHT, model__height=side, model__width=side, **{f"model__{key}": value for key, value in model.items()}
    )
    candidate = decided(learned(given, stream(side)[: 2 if side > SIDE else None])).candidate
    assert candidate
    evaluation = safetensors.torch.load(encode(as_arrays(candidate.evaluation)))
    tensors = safetensors.torch.load(encode(as_arrays(candidate.parameters)))
    network = Network(candidate.model.name, tensors)
    logits = network.logits(evaluation["images"])
    assert logits.argmax(1).equal(evaluation["predictions"])
    assert network.used == tensors.keys()
    assert evaluation["images"].dtype is torch.uint8
    assert evaluation["labels"].dtype is evaluation["predictions"].dtype is torch.int64


@pytest.mark.parametrize("name", MODELS)
def test_the_page_gives_the_logits_of_a_network_for_wide_color_images(name: str):
    torch.manual_seed(0)
    arguments = ModelArguments(classes=10, height=40, width=49, channels=3, mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.3])
    network = models.build(ModelSpec(name, arguments))
    images = torch.randint(0, 256, (3, 40, 49, 3), dtype=torch.uint8)
    with torch.no_grad():
        network(images)  # moves the statistics of batch normalisation
        expected = network.eval()(images)
    found = Network(name, network.state_dict()).logits(images)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_networks_of_timm_are_made_as_the_page_says(name: str):
    timm = pytest.importorskip("timm")
    made = "timm.create_model(NETWORK, num_classes=0, in_chans=C)`, then `set_input_size(img_size=(H, W))` if"
    assert made in " ".join(PAGE.split())
    arguments = ModelArguments(classes=10, height=64, width=64, channels=1, mean=[0.5], std=[0.25])
    expected = models.build(ModelSpec(f"timm:{name}", arguments)).eval()
    body = timm.create_model(name, num_classes=0, in_chans=1)
    if hasattr(body, "set_input_size"):
        body.set_input_size(img_size=(64, 64))
    tensors = expected.state_dict()
    body.load_state_dict({key.removeprefix("body."): t for key, t in tensors.items() if key.startswith("body.")})
    images = torch.randint(0, 256, (2, 64, 64, 1), dtype=torch.uint8)
    features = body.eval()((images.permute(0, 3, 1, 2).float() / 255 - tensors["mean"]) / tensors["std"])
    logits = features @ tensors["head.weight"].T + tensors["head.bias"]
    assert torch.allclose(logits, expected(images), rtol=1e-4, atol=1e-5)
