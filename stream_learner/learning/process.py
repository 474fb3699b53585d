"""Settings of torch that hold for a whole process. The program makes them once, not each learner."""

import torch

from stream_learner.config import LearningSettings


def set_up_torch(settings: LearningSettings) -> None:
    """Set up torch for learning: `learning.threads`, denormal numbers, cuDNN.

    In this thread, and those that it starts, denormal numbers count as 0 from now on. In the whole process cuDNN's
    convolutions are deterministic. Two processes that set up torch alike learn the same bytes.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    # The momentum of a parameter without gradients shrinks to denormal numbers. Processors are ten times slower with
    # these.
    torch.set_flush_denormal(True)
    torch.backends.cudnn.deterministic = True
