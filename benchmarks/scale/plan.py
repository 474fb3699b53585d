"""Sizes that a plan for many ranks needs, from the network."""

from stream_learner.learning.muon import ITERATIONS, matrices_of
from stream_learner.networks import ImageClassifier

NUMBER_BYTES = 4


# Four in an iteration. The first iteration needs no product with the identity, the last one none for a next iteration.
SQUARE_PRODUCTS = 4 * ITERATIONS - 3


def muon_operations(network: ImageClassifier) -> int:
    """Return the floating-point operations of Muon's iterations in a step (see `learning.muon.orthogonal`).

    Every rank computes all of them. The product of matrices [a, b] and [b, c] has 2 a b c operations.
    """
    total = 0
    for matrix in matrices_of(network.body):
        short, long = sorted(matrix.flatten(1).shape)
        total += 2 * (2 * short * short * long) + SQUARE_PRODUCTS * (2 * short**3)
    return total


def state_bytes(network: ImageClassifier) -> int:
    """Return the bytes of the tensors that a save writes with the defaults: network, average and optimizer.

    Muon has one moment for each matrix, AdamW two for other parameters.
    """
    matrices = {id(matrix) for matrix in matrices_of(network.body)}
    moments = sum(p.numel() * (1 if id(p) in matrices else 2) for p in network.parameters())
    values = sum(tensor.numel() for tensor in network.state_dict().values())
    return NUMBER_BYTES * (2 * values + moments)
