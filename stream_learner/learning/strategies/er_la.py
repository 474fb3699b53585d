import torch
from torch import Tensor
from torch.nn import functional as F

from stream_learner.learning.strategies.step import Losses, Step, Strategy, cross_entropy
from stream_learner.networks.tensors import tensor

DECAY = 0.99


class LogitAdjustedReplay(Strategy):
    """Experience replay with logits adjusted by the log-frequency of each class in the latest steps.

    The network then learns as if all classes were equally frequent, so a class that fills the stream has no advantage.

    Huang et al. 2024, "Online Continual Learning via Logit Adjusted Softmax" (arXiv:2311.06460), after Menon et al.
    2021 (arXiv:2007.07314). In each step, the weights of a class's new and replayed samples are added up. The class's
    frequency is an exponential mean of these sums over the steps.
    """

    def __init__(self):
        self._frequencies = torch.empty(0)

    def sums(self, step: Step) -> Tensor:
        labels, weights = (torch.cat(pair) for pair in zip(step.stream[1:3], step.replay[1:3], strict=True))
        # index_add_ on a GPU would add in varying order, and autocast would round a matrix product.
        return (weights[:, None] * F.one_hot(labels, step.classes)).sum(0)

    def begin(self, totals: Tensor) -> None:
        known = F.pad(self._frequencies, (0, len(totals) - len(self._frequencies))).to(totals.device)
        self._frequencies = DECAY * known + (1 - DECAY) * totals

    def losses(self, step: Step) -> Losses:
        both = step.stream.joined(step.replay)
        log_prior = (self._frequencies / self._frequencies.sum().clamp(min=1e-30)).clamp(min=1e-8).log()
        return Losses(cross_entropy(step.model(both.images_NHWC) + log_prior, both.labels), both.weights)

    def retire(self, source: int, target: int | None) -> None:
        missing = 1 + max(source, target or 0) - len(self._frequencies)
        self._frequencies = F.pad(self._frequencies, (0, max(0, missing))).clone()
        if target is not None:
            self._frequencies[target] += self._frequencies[source]
        self._frequencies[source] = 0

    def state_dict(self) -> dict[str, Tensor]:
        return {"frequencies": self._frequencies.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        frequencies = tensor(state, "frequencies", torch.float32, None)
        if (frequencies < 0).any():
            raise ValueError("tensor frequencies holds negative numbers")
        self._frequencies = frequencies
