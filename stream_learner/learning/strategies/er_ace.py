import torch
from torch import Tensor
from torch.nn import functional as F

from stream_learner.learning.strategies.step import Losses, Step, Strategy, cross_entropy


class AsymmetricCrossEntropy(Strategy):
    """ER-ACE: new samples compete only with the classes in the batch, and replayed samples with all classes.

    So new classes do not displace known classes.

    Caccia et al. 2022, "New Insights on Reducing Abrupt Representation Change in Online Continual Learning"
    (arXiv:2104.05025).
    """

    def sums(self, step: Step) -> Tensor:
        return F.one_hot(step.stream.labels, step.classes).float().sum(0)

    def begin(self, totals: Tensor) -> None:
        self._absent = totals == 0

    def losses(self, step: Step) -> Losses:
        both = step.stream.joined(step.replay)
        logits = step.model(both.images_NHWC)
        new = torch.arange(len(logits), device=logits.device) < len(step.stream.labels)
        logits = logits.masked_fill(new[:, None] & self._absent, -torch.inf)
        return Losses(cross_entropy(logits, both.labels), both.weights)
