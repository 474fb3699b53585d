"""Average of the network over its steps. It is more accurate than the network, and its accuracy varies less."""

import copy

import torch
from torch import nn

from stream_learner.networks import ImageClassifier


class Average:
    """Exponential moving average of weights and buffers (Polyak and Juditsky 1992).

    Buffers are averaged too: otherwise batch normalisation would use the statistics of other weights.

    The decay of step t is min(decay, (1 + t) / (10 + t)), so that the average soon forgets the first weights (Tarvainen
    and Valpola 2017). `model` is in evaluation mode and takes no gradients.
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
        parameters, averages = {name for name, _ in model.named_parameters()}, self.model.state_dict()
        for name, latest in model.state_dict().items():
            average = averages[name]
            if name in parameters:
                average.lerp_(latest, towards)
            elif average.is_floating_point():
                # A buffer may hold infinities, such as the mask of an attention layer: inf - inf is NaN.
                average.copy_(torch.where(latest.isfinite(), average.lerp(latest, towards), latest))
            else:  # how many batches were normalised
                average.copy_(latest)

    def grow(self, head: nn.Linear) -> None:
        """Add the new rows of `head`. The existing rows keep their average."""
        old: nn.Linear = self.model.head
        new = copy.deepcopy(head).requires_grad_(False)
        with torch.no_grad():
            new.weight[: old.out_features] = old.weight
            new.bias[: old.out_features] = old.bias
        self.model.head = new
