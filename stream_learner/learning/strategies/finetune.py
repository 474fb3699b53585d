from typing import ClassVar

from torch import Tensor

from stream_learner.learning.strategies.step import Step


class FineTune:
    """Plain steps on the stream, the lower bound of the field: what is not seen again is forgotten."""

    replays: ClassVar[bool] = False

    def loss(self, step: Step) -> Tensor:
        return step.weighted_loss(step.model(step.stream.images_NHWC), step.stream.labels, step.stream.weights)
