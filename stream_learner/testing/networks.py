"""The check of networks."""

import copy
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from stream_learner import networks
from stream_learner.contract.manifest import ModelArguments, ModelSpec
from stream_learner.learning.evaluation import predict
from stream_learner.networks import ImageClassifier
from stream_learner.registry import MODELS
from stream_learner.testing.checking import Checking, registered, same, same_tensors
from stream_learner.testing.small_run import check_in_a_learner, small_settings

CLASSES = 3
RANDOM_FEATURES = 7
BATCHES = 3
ROUNDING = 1e-3  # tolerance of logits, because torch uses other kernels for other batch sizes


def check_model(
    factory: Callable[..., ImageClassifier], *, height: int = 32, width: int = 32, channels: Literal[1, 3] = 3
) -> None:
    """Check a network, given by its class or factory, for images of one size.

    The network maps uint8 images [N, H, W, C] to float32 logits [N, classes], for N of at least 1 and any number of
    classes, also 0. The logits are the head's output for the features. A `convolutional` network can compute in
    bfloat16.

    In evaluation mode it gives the same logits each time, and an image's logits do not depend on the other images. Its
    state dict holds everything that it learns. It can be averaged and frozen, and can use random features. Its features
    do not depend on the mode if it says so. The check also saves and resumes a Learner that uses the network. Raises
    AssertionError.
    """
    check = Checking(factory)
    with torch.random.fork_rng(devices=[]), registered(MODELS, factory) as name:
        size = height, width, channels

        def build(seed: int = 0, classes: int = CLASSES) -> ImageClassifier:
            torch.manual_seed(seed)
            arguments = ModelArguments(
                classes=classes, height=height, width=width, channels=channels, mean=[0.5], std=[0.25]
            )
            return check.call(f"building it for {classes} classes", lambda: networks.build(ModelSpec(name, arguments)))

        images = torch.randint(0, 256, (5, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        _check_shapes(check, build, images)
        network = build()

        def copied() -> ImageClassifier:
            return check.call("copy.deepcopy()", lambda: copy.deepcopy(network))

        if getattr(factory, "convolutional", False):
            _check_bfloat16(check, copied(), images)
        _check_predictions(check, copied(), images)
        _check_state(check, copied(), build(seed=1), images)
        _check_frozen(check, copied(), images)
        _check_modes(check, copied(), images)
        check.that(
            same_tensors(network.state_dict(), build().state_dict()),
            "it starts with other weights for the same seed; draw only from torch's default generator",
        )
        settings = small_settings(
            model={"name": name, "height": height, "width": width, "channels": channels},
            # With the defaults, the steps of a large network take seconds.
            learning={"optimizer": "sgd", "learning_rate": 0.01, "precision": "fp32", "average_decay": 0.9},
        )
        candidate = check_in_a_learner(check, settings, BATCHES)
        released = networks.build(candidate.model)
        released.load_state_dict(candidate.parameters)
        predictions = predict(released, candidate.evaluation["images"].numpy(), torch.device("cpu"))
        check.that(
            (predictions == candidate.evaluation["predictions"].numpy()).all(),
            "a network built from a release predicts differently from the Learner that released it",
        )


def _check_shapes(check: Checking, build: Callable[..., ImageClassifier], images: Tensor) -> None:
    before = images.clone()
    for classes in (0, 1, CLASSES):
        network = build(classes=classes)
        for training in (False, True):
            network.train(training)
            mode = "training" if training else "evaluation"
            for count in (1, len(images)):
                what = f"{count} images in {mode} mode with {classes} classes"
                logits = check.call(what, lambda: network(images[:count]))  # noqa: B023 (called at once)
                returned = f"{logits.dtype} {list(logits.shape)}"
                fits = (logits.dtype, logits.shape) == (torch.float32, (count, classes))
                check.that(fits, f"logits of {what} are {returned}, not float32 {[count, classes]}")
                check.that(logits.isfinite().all(), f"logits of {what} are not finite")
                check.that(same(images, before), "it changes the images that it gets; compute new ones")
    network.eval()
    wide = network.head.in_features
    features = check.call("features()", lambda: network.features(images))
    check.that(
        features.shape == (len(images), wide), f"features() returns {list(features.shape)}, the head takes {wide}"
    )
    check.that(
        same(network.head(features), network(images)),
        "logits are not head(features(images)); a Learner relies on this, so change `body` rather than `forward`",
    )
    network.expand(RANDOM_FEATURES)
    features = check.call("features() after expand()", lambda: network.features(images))
    check.that(
        features.shape == (len(images), RANDOM_FEATURES), f"expand({RANDOM_FEATURES}) gives {list(features.shape)}"
    )


def _check_bfloat16(check: Checking, network: ImageClassifier, images: Tensor) -> None:
    """Check a step in the precision and memory layout that are the defaults for convolutional networks."""
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    with torch.autocast("cpu", torch.bfloat16):
        check.call("a step in bfloat16 with channels_last", lambda: _step(network, images))
    finite = all(parameter.isfinite().all() for parameter in network.parameters())
    check.that(finite, "a step in bfloat16 with channels_last makes parameters that are not finite")


@torch.no_grad()
def _check_predictions(check: Checking, network: ImageClassifier, images: Tensor) -> None:
    network.eval()
    before, generator = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    logits = network(images)
    check.that(
        same(logits, network(images)) and same(generator, torch.get_rng_state()),
        "in evaluation mode it predicts differently each time or draws random numbers; "
        "draw random numbers only in modules that obey train() and eval()",
    )
    check.that(same_tensors(before, network.state_dict()), "predicting in evaluation mode changes its state")
    alone = torch.cat([network(image[None]) for image in images])
    check.that(
        torch.allclose(alone, logits, rtol=ROUNDING, atol=ROUNDING),
        "in evaluation mode an image's logits depend on the other images of the batch",
    )
    check.that(same(copy.deepcopy(network)(images), logits), "copy.deepcopy() of it predicts differently")


@torch.no_grad()
def _check_modes(check: Checking, network: ImageClassifier, images: Tensor) -> None:
    if network.same_in_training:
        same_features = same(network.eval().features(images), network.train().features(images))
        check.that(same_features, "features() differs in training mode; set same_in_training to False")


def _step(network: ImageClassifier, images: Tensor) -> None:
    """Take a step of plain gradient descent on the cross-entropy."""
    network.train().zero_grad()
    F.cross_entropy(network(images).float(), torch.arange(len(images)) % CLASSES).backward()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.grad is not None:
                parameter -= 0.01 * parameter.grad


def _check_state(check: Checking, network: ImageClassifier, other: ImageClassifier, images: Tensor) -> None:
    for _ in range(3):
        check.call("a step", lambda: _step(network, images))
    check.call("load_state_dict()", lambda: other.load_state_dict(network.state_dict()))
    with torch.no_grad():
        check.that(
            same(network.eval()(images), other.eval()(images)),
            "a network that loads its state predicts differently; keep all that is learned in parameters and buffers",
        )
    for one in (network, other):
        torch.manual_seed(0)
        _step(one, images)
    check.that(
        same_tensors(network.state_dict(), other.state_dict()),
        "a network that loads its state learns differently; keep all that affects steps in parameters and buffers",
    )


def _check_frozen(check: Checking, network: ImageClassifier, images: Tensor) -> None:
    network.freeze()
    before = copy.deepcopy(network.state_dict())
    check.call("a step after freeze()", lambda: _step(network, images))
    after = network.state_dict()
    changed = [name for name in before if not name.startswith("head.") and not same(before[name], after[name])]
    check.that(
        not changed, f"a step after freeze() changes {', '.join(changed)}; put all layers except the head into `body`"
    )
    check.that(not same(before["head.weight"], after["head.weight"]), "a step after freeze() does not change the head")
