"""A learner of one shard with plain settings learns the same bytes as a training loop from a textbook."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stream_learner import networks
from stream_learner.formats.record import Sample
from stream_learner.learning.learner import Learner
from stream_learner.learning.spec import spec_of
from stream_learner.testing.small_run import small_settings

BATCH, CLASSES, BATCHES = 32, 4, 12


@pytest.mark.parametrize("model", ["mlp", "cnn", "small_network:Normalised"])
def test_a_plain_learner_takes_the_steps_of_a_textbook(model: str):
    settings = small_settings(
        model={"name": model},
        batch={"size": BATCH},  # a power of two, so that a mean and a sum of divided losses have the same gradients
        learning={
            "strategy": "finetune",
            "optimizer": "adam",
            "learning_rate": 0.001,
            "precision": "fp32",
            "channels_last": False,
        },
    )
    random, shape = np.random.default_rng(0), (BATCHES, BATCH, 8, 8, 1)
    images_BNHWC, labels_BN = random.integers(256, size=shape, dtype=np.uint8), random.integers(CLASSES, size=shape[:2])
    labels_BN[0, :CLASSES] = range(CLASSES)  # the first batch has all classes, in the order of their indices

    learner, losses = Learner(settings), []
    for b, (images_NHWC, labels) in enumerate(zip(images_BNHWC, labels_BN.tolist(), strict=True)):
        samples = zip(images_NHWC, labels, strict=True)
        losses.append(
            learner.learn([Sample(f"{b}/{i}", f"{y}", x_HWC) for i, (x_HWC, y) in enumerate(samples)]).loss_sum
        )

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.run.seed)
        network = networks.build(spec_of(settings.model, classes=0), own=model)
        network.head = nn.Linear(network.head.in_features, CLASSES)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.001, fused=True)
        expected = []
        for x_NHWC, y_N in zip(torch.from_numpy(images_BNHWC), torch.from_numpy(labels_BN), strict=True):
            loss = F.cross_entropy(network(x_NHWC), y_N)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            expected.append(loss.item())

    assert losses == pytest.approx(expected, rel=1e-6)  # the losses are added in another order
    learned, wanted = learner.network.state_dict(), network.state_dict()
    assert learned.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(learned[name], wanted[name])] == []
