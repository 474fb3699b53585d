import torch

from stream_learner.learning.strategies.step import Losses, Step, Strategy, cross_entropy


class AsymmetricCrossEntropy(Strategy):
    """ER-ACE: new samples compete only with the classes in the batch, and replayed samples with all classes.

    So new classes do not displace known classes.

    Caccia et al. 2022, "New Insights on Reducing Abrupt Representation Change in Online Continual Learning"
    (arXiv:2104.05025).
    """

    def losses(self, step: Step) -> Losses:
        both = step.stream.joined(step.replay())
        logits = step.model(both.images_NHWC)
        absent = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
        absent[step.stream.labels] = False
        new = torch.arange(len(logits), device=logits.device) < len(step.stream.labels)
        logits = logits.masked_fill(new[:, None] & absent, -torch.inf)
        return Losses(cross_entropy(logits, both.labels), both.weights)
