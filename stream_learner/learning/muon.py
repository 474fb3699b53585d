"""Muon, an optimizer for matrices and for kernels of convolutions."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from stream_learner.learning.optimizers import PlainAdamW

ADAMS_SIZE = 0.2
"""Root mean square of Adam's updates, as a multiple of the learning rate."""
ITERATIONS = 5
A, B, C = 3.4445, -4.7750, 2.0315


class Muon(PlainAdamW):
    """Optimizer that updates matrices by their orthogonalised momentum, and other parameters with AdamW.

    So directions of the gradient that come from few images count as much as directions that are in every batch.

    Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks" (kellerjordan.github.io/posts/muon),
    with Nesterov's momentum. The updates of matrices are as large as the updates of AdamW, so that one learning rate
    fits both: Liu et al. 2025, "Muon is Scalable for LLM Training" (arXiv:2502.16982). A kernel [out, in, height,
    width] is treated as the matrix [out, in * height * width]. torch's own Muon does not support kernels.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        matrices: Iterable[nn.Parameter],
        lr: float,
        momentum: float,
        weight_decay: float,
    ):
        """Take all parameters. Muon updates those that are also in `matrices`, and AdamW updates the others.

        The shape of a matrix is [rows, columns] or [out, in, height, width].
        """
        super().__init__(parameters, lr, weight_decay=weight_decay, fused=True)
        self.matrices = list(matrices)
        """Parameters that Muon updates."""
        self._momentum = momentum
        self.share = 1.0
        """Factor (0..1) of the next update of the matrices. The size of their update does not depend on the gradient's
        size. Without the factor, samples of low weight would change the network as much as other samples."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update the parameters that have gradients. Gradients of matrices are removed, so that AdamW skips them."""
        (group,) = self.param_groups
        for matrix in self.matrices:
            if matrix.grad is not None:
                self._move(matrix, matrix.grad, self.share * group["lr"], group["weight_decay"])
                matrix.grad = None
        super().step(closure)

    def _move(self, matrix: Tensor, gradient: Tensor, lr: float, weight_decay: float) -> None:
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        mean = state["momentum_buffer"].lerp_(gradient, 1 - self._momentum)
        update = orthogonal(gradient.lerp(mean, self._momentum).flatten(1))
        if weight_decay:
            matrix.mul_(1 - lr * weight_decay)
        matrix.add_(update.reshape(matrix.shape), alpha=-lr * ADAMS_SIZE * max(update.shape) ** 0.5)


def matrices_of(body: nn.Module) -> list[nn.Parameter]:
    """Return the weights of linear, recurrent, attention and two-dimensional convolutional layers.

    Embedding tables and grouped convolutions are left out, because their rows are unrelated.
    """
    layers = nn.Linear, _ConvNd, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention
    together = [m for m in body.modules() if isinstance(m, layers) and getattr(m, "groups", 1) == 1]
    inside = {id(parameter) for module in together for parameter in module.parameters(recurse=False)}
    return [p for p in body.parameters() if p.ndim in (2, 4) and id(p) in inside]


def orthogonal(matrix: Tensor) -> Tensor:
    """Approximate U V^T of a matrix U S V^T, float32 [rows, columns], by Newton-Schulz iterations.

    An iteration is X <- F X with the factor F = A + B G + C G^2 and G = X X^T. Singular values become 0.7 to 1.2. Only
    singular values below a few percent of the norm stay lower.

    G is a square matrix with the length of X's shorter side. For kernels, G is several times smaller than X. So the
    iterations compute only G and the product of the factors. X is multiplied by this product once, at the end.
    """
    x = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = x / (x.norm() + 1e-7)
    gram = x @ x.T
    product = factor = _factor(gram)
    for _ in range(ITERATIONS - 1):
        gram = factor @ gram @ factor
        factor = _factor(gram)
        product = factor @ product
    x = product @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


def _factor(gram: Tensor) -> Tensor:
    factor = torch.addmm(gram, gram, gram, beta=B, alpha=C)
    factor.diagonal().add_(A)
    return factor
