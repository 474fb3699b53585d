"""Average of the network's parameters over its steps.

The average is more accurate than the network after its last step, and its accuracy varies less.
"""

import copy

import torch
from torch import nn

from stream_learner.networks import ImageClassifier


class Average:
    """Exponential moving average of parameters and buffers (Polyak and Juditsky 1992).

    Buffers are averaged too: otherwise batch normalisation would use the statistics of other parameters.

    The decay of step t is min(decay, (1 + t) / (10 + t)), so that the average soon forgets the initial parameters
    (Tarvainen and Valpola 2017). `model` is in evaluation mode and takes no gradients.
    """

    def __init__(self, model: ImageClassifier, decay: float):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, model: ImageClassifier) -> None:
        """Move the average towards `model`. Call it after each step."""
        towards = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        for average, latest in zip(self.model.parameters(), model.parameters(), strict=True):
            average.lerp_(latest, towards)
        for average, latest in zip(self.model.buffers(), model.buffers(), strict=True):
            if torch.equal(average, latest):  # most buffers never change
                continue
            if average.is_floating_point():
                # A buffer may hold infinities, such as the mask of an attention layer: inf - inf is NaN.
                average.copy_(torch.where(latest.isfinite(), average.lerp(latest, towards), latest))
            else:  # an integer, such as batch normalisation's count of batches
                average.copy_(latest)

    def grow(self, head: nn.Linear) -> None:
        """Add the new rows of `head`. The existing rows keep their average."""
        old: nn.Linear = self.model.head
        new = copy.deepcopy(head).requires_grad_(False)
        with torch.no_grad():
            new.weight[: old.out_features] = old.weight
            new.bias[: old.out_features] = old.bias
        self.model.head = new
