"""The plan for many ranks counts the collectives that a learner uses."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from benchmarks.scale.traffic import Collective, of_step
from stream_learner import networks
from stream_learner.config import Settings
from stream_learner.formats.record import Sample
from stream_learner.learning.learner import Learner
from stream_learner.learning.parallel import Json, Parallel
from stream_learner.learning.spec import spec_of
from stream_learner.testing.small_run import small_settings

SHARDS = 2
SAMPLES = 3


class Noting(Parallel):
    """All shards in one process, and a list of the collectives."""

    def __init__(self):
        super().__init__(SHARDS)
        self.used: list[Collective] = []

    def gathered(self, rows: np.ndarray) -> np.ndarray:
        self.used.append(Collective("gathered", rows[0].nbytes))
        return super().gathered(rows)

    def objects(self, local: Sequence[Json]) -> list[Json]:
        self.used.append(Collective("objects", 0))
        return super().objects(local)

    def summed(self, rows: Tensor) -> Tensor:
        self.used.append(Collective("summed", rows[0].nbytes))
        return super().summed(rows)


def samples(settings: Settings, shard: int) -> list[Sample]:
    shape, random = (settings.model.height, settings.model.width, settings.model.channels), np.random.default_rng(shard)
    return [
        Sample(f"images/{shard}/{i}", str(i % 2), random.integers(256, size=shape, dtype=np.uint8))
        for i in range(SAMPLES)
    ]


def test_the_plan_has_the_collectives_of_a_step():
    for model in ("cnn", "resnet18_slim"):
        settings = small_settings(
            run={"id": "plan", "shards": SHARDS},
            batch={"size": SHARDS * SAMPLES},
            memory={"replay_size": SHARDS},
            model={"name": model, "height": 12, "width": 12},
            learning={"strategy": "er_la"},
        )
        parallel = Noting()
        learner = Learner(settings, parallel=parallel)
        shards = [samples(settings, shard) for shard in range(SHARDS)]
        learner.learn_shards(shards, [SAMPLES] * SHARDS)
        assert Collective("objects", 0) in parallel.used  # the labels are new in the first batch only
        parallel.used.clear()
        assert learner.learn_shards(shards, [SAMPLES] * SHARDS).steps == 1
        network = networks.build(spec_of(settings.model, classes=2))
        assert parallel.used == of_step(network, SAMPLES)[1:-1]  # without those of the loop around the learner
