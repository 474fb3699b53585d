"""Simulation of a run on many ranks: the ranks compute between collectives, in which each waits for the slowest."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.scale.traffic import Collective

STEPS = 400
# Parts of a sample's time between the collectives of a step: prediction; forward and backward passes.
PARTS = 0.1, 0.9


class Stages(NamedTuple):
    """Times of a rank that computes alone, in seconds.

    A step takes `step_s`, `shard_s` for each shard with samples, and `sample_s` for each new sample with those replayed
    beside it. Reading and decoding a record takes `input_s`. A save copies the state in `save_s`, and each shard's in
    `shard_save_s`. `deviation` is the standard deviation of the logarithm of a step's time.
    """

    step_s: float
    shard_s: float
    sample_s: float
    input_s: float
    save_s: float
    shard_save_s: float
    deviation: float


class Network(NamedTuple):
    """A network between ranks.

    A collective takes `call_s`, `hop_s` for each rank that a message passes, and `byte_s` for each byte that a rank
    sends. `sums` are the same of sums of tensors, if they use other links.
    """

    call_s: float
    hop_s: float
    byte_s: float
    sums: "Network | None" = None

    def seconds(self, collective: Collective, shards: int, ranks: int) -> float:
        """Return the time of a collective when all ranks begin together."""
        if ranks == 1:
            return 0.0
        if self.sums and collective.method == "summed":
            return self.sums.seconds(collective, shards, ranks)
        # A gathered message passes all ranks of the ring. The slices of a sum go to all ranks at once, and then around.
        calls, hops = (2, ranks) if collective.sliced(ranks) else (1, ranks - 1)
        return calls * self.call_s + hops * self.hop_s + collective.sent_bytes(shards, ranks) * self.byte_s


class Load(NamedTuple):
    """Work of the shards in a step.

    `shares` are the shards' records in a step, as shares (0..1) of a full part of the batch. Rank 0 takes `slow` times
    as long as the others. Without `save_every_s`, nothing is saved. With `arrival_s`, steps wait for records: the
    fullest shard gets its part of a batch in this time. Steps wait at most `linger_s`.
    """

    shares: Sequence[float]
    slow: float = 1.0
    save_every_s: float | None = None
    arrival_s: float = 0.0
    linger_s: float = 1.0


class Rate(NamedTuple):
    """Records and steps a second, and the share of the time (0..1) in which a rank computes nothing, on average."""

    records_per_s: float
    steps_per_s: float
    waiting: float


def simulate(
    stages: Stages, network: Network, collectives: Sequence[Collective], samples: int, load: Load, ranks: int
) -> Rate:
    """Return the rate of a run. `samples` is a shard's full part of the batch."""
    shards, random = len(load.shares), np.random.default_rng(0)
    full = samples * np.array(load.shares)
    if load.arrival_s > load.linger_s:  # the batch closes before a shard is full
        full = full * (load.linger_s / load.arrival_s)
    # New samples [steps, shards]. Records that arrive now come at random, those of a backlog are there.
    counts = np.minimum(random.poisson(full, (STEPS, shards)), samples) if load.arrival_s else np.tile(full, (STEPS, 1))
    of_rank = counts.reshape(STEPS, ranks, -1)
    new, busy = of_rank.sum(2), (of_rank > 0).sum(2)
    factors = np.array([load.slow, *[1.0] * (ranks - 1)])
    learning = busy * stages.shard_s + new * stages.sample_s
    parts = np.stack([new * stages.input_s, *(part * learning for part in PARTS), np.full(new.shape, stages.step_s)])
    jitter = np.exp(random.normal(-(stages.deviation**2) / 2, stages.deviation, parts.shape))
    parts = parts * factors * jitter
    exchanged_s = sum(network.seconds(collective, shards, ranks) for collective in collectives)
    step_s = parts.max(2).sum(0) + exchanged_s
    waiting_s = np.maximum(0.0, min(load.arrival_s, load.linger_s) - step_s)
    total_s = float((step_s + waiting_s).sum())
    if load.save_every_s:
        a_save_s = stages.save_s + shards / ranks * stages.shard_save_s
        total_s *= 1 + a_save_s / load.save_every_s
    return Rate(float(counts.sum()) / total_s, STEPS / total_s, 1 - float(parts.mean(2).sum()) / total_s)
