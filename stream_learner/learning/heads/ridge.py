import torch
from torch import Tensor

from stream_learner.learning.heads.prototype import Prototype
from stream_learner.networks.tensors import tensor

# In half decades, relative to the mean of G's diagonal. The order is descending, so that a tie gives the
# larger penalty.
PENALTIES = [10.0 ** (exponent / 2) for exponent in range(4, -13, -1)]


class Ridge(Prototype):
    """Weighted ridge regression onto one-hot targets: decorrelated prototypes (Hoerl and Kennard 1970).

    For samples with weight alpha, one-hot label y and features h, the sums are Q = sum alpha y h^T and G = sum alpha h
    h^T. The layer is W = Q (G + lambda I)^-1. The solution centres h and y, so that the intercept has no penalty.
    Nothing is forgotten: W is the solution on all samples at once.

    `lambda` needs no tuning. It is the value with the lowest generalised cross-validation score n RSS / (n - tr H)^2
    (Golub, Heath and Wahba 1979), where n is the sum of the weights. The score follows from the same sums. A solve of F
    features is an eigendecomposition, O(F^3): about 2 s for 2,000 features on one core. G takes F^2 * 8 bytes of the
    state.
    """

    def __init__(self, features: int, device: torch.device):
        super().__init__(features, device)
        self.gram_FF = torch.zeros(features, features, dtype=torch.float64, device=device)
        # Sums of samples whose class retired without a replacement. These samples cannot be removed from G.
        self.rest_F = torch.zeros(features, dtype=torch.float64, device=device)
        self.rest_weight = torch.zeros((), dtype=torch.float64, device=device)

    def observe(self, features_NF: Tensor, labels_N: Tensor, weights_N: Tensor) -> None:
        super().observe(features_NF, labels_N, weights_N)
        features_NF = features_NF.double()
        self.gram_FF += (features_NF * weights_N.double()[:, None]).T @ features_NF

    def retire(self, source: int, target: int | None) -> None:
        self._know(source + 1)
        if target is None:
            self.rest_F += self.sums_CF[source]
            self.rest_weight += self.weights_C[source]
        super().retire(source, target)

    def solve(self, classes: int) -> tuple[Tensor, Tensor]:
        # The samples without a class count as one more class, which is not predicted.
        sums_CF = torch.cat([self.sums_CF, self.rest_F[None]])
        weights_C = torch.cat([self.weights_C, self.rest_weight[None]])
        total = float(weights_C.sum())
        if not total:
            return self._layer(classes, self.sums_CF, self.weights_C)
        mean_F, shares_C = sums_CF.sum(0) / total, weights_C / total
        eigenvalues_F, vectors_FF = torch.linalg.eigh(self.gram_FF - total * torch.outer(mean_F, mean_F))
        eigenvalues_F.clamp_(min=0)  # rounding errors can make them negative
        projected_CF = (sums_CF - torch.outer(weights_C, mean_F)) @ vectors_FF
        squares_F = projected_CF.square().sum(0)
        total_squares = total * float(1 - shares_C.square().sum())

        def score(penalty: float) -> float:
            shrunk_F = eigenvalues_F + penalty
            residual = total_squares - float((squares_F * (shrunk_F + penalty) / shrunk_F.square()).sum())
            free = total - 1 - float((eigenvalues_F / shrunk_F).sum())
            return max(residual, 0) / free**2 if free > 0 else torch.inf

        scale = float(self.gram_FF.diagonal().mean()) or 1.0
        penalty = min((scale * relative for relative in PENALTIES), key=score)
        weight_CF = projected_CF / (eigenvalues_F + penalty) @ vectors_FF.T
        bias_C = shares_C - weight_CF @ mean_F
        return self._layer(classes, weight_CF[:-1], bias_C[:-1])

    def state_dict(self) -> dict[str, Tensor]:
        return super().state_dict() | {
            "gram": self.gram_FF.to("cpu", copy=True),
            "rest": self.rest_F.to("cpu", copy=True),
            "rest_weight": self.rest_weight.to("cpu", copy=True),
        }

    def load_state_dict(self, state: dict[str, Tensor], classes: int) -> None:
        super().load_state_dict(state, classes)
        device = self.gram_FF.device
        self.gram_FF = tensor(state, "gram", torch.float64, *self.gram_FF.shape).to(device, copy=True)
        self.rest_F = tensor(state, "rest", torch.float64, *self.rest_F.shape).to(device, copy=True)
        self.rest_weight = tensor(state, "rest_weight", torch.float64).to(device, copy=True)
        if self.rest_weight < 0:
            raise ValueError("tensor rest_weight is negative")
