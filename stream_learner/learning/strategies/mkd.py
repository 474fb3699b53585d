from typing import ClassVar

import torch
from torch.nn import functional as F

from stream_learner.learning.strategies.step import Losses, Step, Strategy, cross_entropy

TEMPERATURE = 2.0
DISTILLATION = 0.25


class MomentumDistillation(Strategy):
    """Experience replay with the network's own average as teacher.

    The average changes more slowly than the network and forgets less. The network learns the average's probabilities in
    addition to the labels.

    Michel et al. 2024, "Rethinking Momentum Knowledge Distillation in Online Continual Learning" (arXiv:2309.02870),
    with the distillation loss of Hinton et al. 2015 (arXiv:1503.02531). Needs `learning.average_decay`.
    """

    distils: ClassVar[bool] = True

    def losses(self, step: Step) -> Losses:
        assert step.average is not None
        both = step.stream.joined(step.replay)
        logits = step.model(both.images_NHWC).float()
        with torch.no_grad():
            taught = step.average(both.images_NHWC).float()
        divergence = F.kl_div(
            F.log_softmax(logits / TEMPERATURE, 1),
            F.log_softmax(taught / TEMPERATURE, 1),
            reduction="none",
            log_target=True,
        ).sum(1)
        losses = cross_entropy(logits, both.labels) + DISTILLATION * TEMPERATURE**2 * divergence
        return Losses(losses, both.weights)
