from typing import ClassVar

import torch
from torch import Tensor

from stream_learner.learning.heads.statistics import NEVER
from stream_learner.networks.tensors import tensor


class Prototype:
    """Weighted nearest class mean (Mensink et al. 2013, "Distance-Based Image Classification", TPAMI 35(11)).

    The sums are W = sum_i alpha_i y_i x_i^T, where alpha_i is a sample's weight, y_i its one-hot label and x_i its
    features. Each row of W, divided by the class's sum of weights, is the class mean mu_c. The mean nearest to features
    x has the largest mu_c x - |mu_c|^2 / 2, which a linear layer computes.
    """

    expands: ClassVar[bool] = False

    def __init__(self, features: int, device: torch.device):
        self.sums_CF = torch.zeros(0, features, dtype=torch.float64, device=device)
        self.weights_C = torch.zeros(0, dtype=torch.float64, device=device)

    def observe(self, features_NF: Tensor, labels_N: Tensor, weights_N: Tensor) -> None:
        self._know(int(labels_N.max()) + 1)
        # A product of one-hot rows, because index_add_ on a GPU adds in varying order.
        targets_CN = weights_N.double() * (
            labels_N == torch.arange(len(self.weights_C), device=labels_N.device)[:, None]
        )
        self.sums_CF += targets_CN @ features_NF.double()
        self.weights_C += targets_CN.sum(1)

    def retire(self, source: int, target: int | None) -> None:
        self._know(1 + max(source, target or 0))
        if target is not None:
            self.sums_CF[target] += self.sums_CF[source]
            self.weights_C[target] += self.weights_C[source]
        self.sums_CF[source] = 0
        self.weights_C[source] = 0

    def solve(self, classes: int) -> tuple[Tensor, Tensor]:
        means_CF = self.sums_CF / self.weights_C.clamp(min=torch.finfo(torch.float64).tiny)[:, None]
        return self._layer(classes, means_CF, -means_CF.square().sum(1) / 2)

    def _know(self, classes: int) -> None:
        missing = classes - len(self.weights_C)
        if missing > 0:
            self.sums_CF = torch.cat([self.sums_CF, self.sums_CF.new_zeros(missing, self.sums_CF.shape[1])])
            self.weights_C = torch.cat([self.weights_C, self.weights_C.new_zeros(missing)])

    def _layer(self, classes: int, weight_CF: Tensor, bias_C: Tensor) -> tuple[Tensor, Tensor]:
        """Return the layer in float32 with `classes` rows. Rows of classes without samples are never predicted."""
        weight = torch.zeros(classes, weight_CF.shape[1], device=weight_CF.device)
        bias = torch.full((classes,), NEVER, device=weight_CF.device)
        (known,) = torch.nonzero(self.weights_C, as_tuple=True)
        weight[known], bias[known] = weight_CF[known].float(), bias_C[known].float()
        return weight, bias

    def state_dict(self) -> dict[str, Tensor]:
        return {"sums": self.sums_CF.to("cpu", copy=True), "weights": self.weights_C.to("cpu", copy=True)}

    def load_state_dict(self, state: dict[str, Tensor], classes: int) -> None:
        weights_C = tensor(state, "weights", torch.float64, None)
        if len(weights_C) > classes or (weights_C < 0).any():
            raise ValueError(f"tensor weights must hold at most {classes} weights, none negative")
        sums_CF = tensor(state, "sums", torch.float64, len(weights_C), self.sums_CF.shape[1])
        self.sums_CF = sums_CF.to(self.sums_CF.device, copy=True)
        self.weights_C = weights_C.to(self.weights_C.device, copy=True)
