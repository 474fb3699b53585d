"""Settings of torch for the whole process. The program makes these settings once. Learners do not change them."""

import torch

from stream_learner.config import LearningSettings


def set_up_torch(settings: LearningSettings, shards: int = 1) -> None:
    """Set up torch for learning: `learning.threads`, denormal numbers, cuDNN. `shards` is `run.shards`.

    In this thread, and in threads that it starts later, denormal numbers count as 0. In the whole process, cuDNN's
    convolutions are deterministic. Two processes with the same setup learn the same bytes.
    """
    # With several shards, the number of threads must not depend on the number of processes that share the cores.
    threads = settings.threads or (1 if shards > 1 else 0)
    if threads:
        torch.set_num_threads(threads)
    # The momentum of a parameter without gradients shrinks to denormal numbers. These make processors ten times slower.
    torch.set_flush_denormal(True)
    torch.backends.cudnn.deterministic = True
