"""Networks, loads and runs that are simulated, with the assumptions behind them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.scale import measured
from benchmarks.scale.plan import muon_operations
from benchmarks.scale.simulation import Load, Network, Rate, Stages, simulate
from benchmarks.scale.traffic import of_step
from stream_learner import config, networks
from stream_learner.config import Settings
from stream_learner.learning.spec import spec_of
from stream_learner.networks import ImageClassifier

SHARDS = 128
SAMPLES = 32
"""New samples of a shard in a step. Three replayed ones come with each."""
RANKS = [2**power for power in range(8)]
TCP_HOP_S = 30e-6
TCP_BYTE_S = 8 / 25e9
NCCL_CALL_S = 30e-6
NCCL_HOP_S = 5e-6
NCCL_BYTE_S = 8 / (0.8 * 400e9)
A100_IMAGES_PER_S = 2470
A100_FLOPS = 0.5 * 19.5e12
PHOTO_BYTES = 25_000
DEVIATION = 0.05


class Run(NamedTuple):
    """A run of SHARDS shards."""

    network: ImageClassifier
    stages: Stages
    between: Network

    def rate(self, ranks: int, load: Load | None = None, shards: int = SHARDS, samples: int = SAMPLES) -> Rate:
        """Return the simulated rate. By default, all shards have full parts of the batch."""
        load = load or Load([1.0] * shards)
        return simulate(self.stages, self.between, of_step(self.network, samples), samples, load, ranks)

    def efficiency(self, ranks: int, load: Load | None = None) -> float:
        """Return the records/s of each rank over those of one rank with full shards."""
        return self.rate(ranks, load).records_per_s / (ranks * self.rate(1).records_per_s)


def settings(model: str, side_px: int, channels: int) -> Settings:
    size = [f"model.height={side_px}", f"model.width={side_px}", f"model.channels={channels}"]
    return config.load(None, ["run.id=scale", "input.topics=['images']", f"model.name={model}", *size])


def network(model: str, side_px: int, channels: int, classes: int) -> ImageClassifier:
    return networks.build(spec_of(settings(model, side_px, channels).model, classes))


def gloo() -> Network:
    here = measured.loopback()
    assert here.sums
    sums = Network(here.call_s, TCP_HOP_S, here.sums.byte_s + TCP_BYTE_S)
    return Network(here.call_s, TCP_HOP_S, TCP_BYTE_S, sums)


def gpus() -> Run:
    """Return ResNet-50 on GPUs: small collectives by gloo, sums by NCCL."""
    model = network("timm:resnet50", 224, 3, 1000)
    stages = Stages(
        step_s=muon_operations(model) / A100_FLOPS,
        shard_s=0.0,
        sample_s=(1 + 3 + 1 / 3) / A100_IMAGES_PER_S,
        input_s=measured.decode_s("jpeg224"),
        save_s=0.1,
        shard_save_s=0.0,
        deviation=DEVIATION,
    )
    return Run(model, stages, gloo()._replace(sums=Network(NCCL_CALL_S, NCCL_HOP_S, NCCL_BYTE_S)))


def cpus(model: str) -> Run:
    """Return a network on ranks of one core of this machine's kind, between hosts."""
    return Run(network(model, 28, 1, 10), measured.stages(measured.measured(model)), gloo())


def uneven() -> Sequence[float]:
    """Return shares of shards whose records follow Zipf's law with the exponent 1/2."""
    return (1 / np.sqrt(np.random.default_rng(0).permutation(SHARDS) + 1)).tolist()


def loads() -> dict[str, Load]:
    """Return the loads of the simulation by name."""
    return {
        "all shards full": Load([1.0] * SHARDS),
        "a save every 30 s": Load([1.0] * SHARDS, save_every_s=30.0),
        "one rank of half the speed": Load([1.0] * SHARDS, slow=2.0),
        "16 of 128 shards empty": Load([0.0] * 16 + [1.0] * (SHARDS - 16)),
        "the same, spread over the ranks": Load(([0.0] + [1.0] * 7) * 16),
        "uneven shards": Load(uneven()),
    }
