"""Settings of torch that hold for a whole process, so whoever owns the process makes them, and no learner."""

import torch

from stream_learner.config import LearningSettings


def set_up_torch(settings: LearningSettings) -> None:
    """Set up torch for learning: `learning.threads`, denormal numbers, cuDNN.

    In this thread, and those that it starts, denormal numbers count as 0 from now on. In the whole process cuDNN's
    convolutions are deterministic. Two processes that set up torch alike learn the same bytes.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    # The momentum of what has no gradient any more fades into denormal numbers, with which processors take ten times as
    # long.
    torch.set_flush_denormal(True)
    torch.backends.cudnn.deterministic = True
