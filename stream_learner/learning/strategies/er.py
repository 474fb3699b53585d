from stream_learner.learning.strategies.step import Losses, Step, Strategy, cross_entropy


class ExperienceReplay(Strategy):
    """Experience replay: each step joins the stream's samples with `memory.replay_size` samples of the memory.

    Chaudhry et al. 2019, "On Tiny Episodic Memories in Continual Learning" (arXiv:1902.10486), with a class-balanced
    memory.
    """

    def losses(self, step: Step) -> Losses:
        both = step.stream.joined(step.replay)
        return Losses(cross_entropy(step.model(both.images_NHWC), both.labels), both.weights)
