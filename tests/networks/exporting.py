"""Networks that are exported in tests."""

import os
from typing import Any, Literal

import numpy as np
import torch

from stream_learner import networks
from stream_learner.contract.manifest import ModelArguments, ModelSpec
from stream_learner.networks import ImageClassifier


def spec_of(
    name: str, side: int = 12, channels: Literal[1, 3] = 3, classes: int = 5, random_features: int = 0
) -> ModelSpec:
    mean, std = [0.5] * channels, [0.25] * channels
    return ModelSpec(
        name,
        ModelArguments(
            classes=classes,
            height=side,
            width=side,
            channels=channels,
            mean=mean,
            std=std,
            random_features=random_features,
        ),
    )


def built(spec: ModelSpec) -> ImageClassifier:
    """The network with weights and statistics that differ from each other."""
    torch.manual_seed(0)
    network = networks.build(spec)
    for name, buffer in network.named_buffers():
        if "running" in name:
            buffer.add_(torch.rand_like(buffer))
    return network.eval()


def images_of(spec: ModelSpec, count: int) -> np.ndarray:
    shape = (count, spec.arguments.height, spec.arguments.width, spec.arguments.channels)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def cannot_be_exported(**arguments: Any) -> Any:
    network = built(ModelSpec("mlp", ModelArguments(**arguments)))
    network.body.register_forward_hook(lambda _, __, features: features if features.sum() > 0 else -features)
    return network


def ends_the_process(**_: Any) -> Any:
    os._exit(1)
