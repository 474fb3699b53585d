from typing import ClassVar

from stream_learner.learning.strategies.step import Losses, Step, Strategy, cross_entropy


class FineTune(Strategy):
    """Plain steps on the stream: classes that are not seen again are forgotten. It is the usual lower bound."""

    replays: ClassVar[bool] = False

    def losses(self, step: Step) -> Losses:
        return Losses(cross_entropy(step.model(step.stream.images_NHWC), step.stream.labels), step.stream.weights)
