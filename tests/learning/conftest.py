import torch
from hypothesis import settings

# The same examples in every run, and none is too slow for a busy machine.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

torch.set_num_threads(1)
