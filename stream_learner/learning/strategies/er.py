from typing import ClassVar

from torch import Tensor

from stream_learner.learning.strategies.step import Step


class ExperienceReplay:
    """Experience replay: each step joins the stream's samples with `memory.replay_size` from the memory.

    Chaudhry et al. 2019, "On Tiny Episodic Memories in Continual Learning" (arXiv:1902.10486), with a
    class-balanced memory.
    """

    replays: ClassVar[bool] = True

    def loss(self, step: Step) -> Tensor:
        both = step.stream.joined(step.replay())
        return step.weighted_loss(step.model(both.images_NHWC), both.labels, both.weights)
