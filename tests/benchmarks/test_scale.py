"""The plan and the simulation of a run on many ranks."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.runs import Run
from benchmarks.scale import measured, page
from benchmarks.scale.measured import BATCH, Measured
from benchmarks.scale.plan import muon_operations, state_bytes
from benchmarks.scale.simulation import Load, Network, Stages, simulate
from benchmarks.scale.traffic import Collective, of_step
from stream_learner import networks
from stream_learner.config import Settings
from stream_learner.formats.record import Sample
from stream_learner.learning.learner import Learner
from stream_learner.learning.muon import matrices_of, orthogonal
from stream_learner.learning.parallel import Json, Parallel
from stream_learner.learning.spec import spec_of
from stream_learner.learning.state_dict import split
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


def test_the_plan_has_the_operations_of_muon():
    network = networks.build(spec_of(small_settings(model={"name": "cnn", "height": 12, "width": 12}).model, classes=2))
    with FlopCounterMode(display=False) as counter:
        for matrix in matrices_of(network.body):
            orthogonal(torch.ones_like(matrix).flatten(1))
    assert muon_operations(network) == counter.get_total_flops()


def test_the_plan_has_the_bytes_of_a_state():
    settings = small_settings(
        model={"name": "cnn", "height": 12, "width": 12}, learning={"optimizer": "muon", "average_decay": 0.9}
    )
    learner = Learner(settings)
    learner.learn(samples(settings, 0))
    tensors, _ = split(learner.state_dict())
    trained = [value for name, value in tensors.items() if name.startswith("trainer/")]
    assert sum(value.nbytes for value in trained) == pytest.approx(state_bytes(learner.network), rel=0.001)


STAGES = Stages(0.01, 0.002, 0.001, 0.0005, 0.1, 0.01, 0.0)
FULL = Load([1.0] * 8)
FAST = Network(0.0, 0.0, 0.0)


def test_equal_ranks_without_a_network_share_all_but_the_replicated_part_of_a_step():
    for ranks in (1, 2, 8):
        of_rank = 8 // ranks
        step_s = 0.01 + of_rank * (0.002 + 4 * 0.0015)
        rate = simulate(STAGES, FAST, [], 4, FULL, ranks)
        assert rate.steps_per_s == pytest.approx(1 / step_s)
        assert rate.records_per_s == pytest.approx(32 / step_s)
        assert rate.waiting == pytest.approx(0.0)


def test_all_ranks_wait_for_the_slowest_and_for_the_network():
    sums = Collective("summed", 4_000_000)
    network = Network(0.001, 0.0001, 1e-9)
    alone = simulate(STAGES, network, [sums], 4, FULL, 1)
    assert alone == simulate(STAGES, FAST, [sums], 4, FULL, 1)
    fast, together = (1 / simulate(STAGES, n, [sums], 4, FULL, 8).steps_per_s for n in (FAST, network))
    assert together - fast == pytest.approx(2 * 0.001 + 8 * 0.0001 + 7_000_000e-9)
    slow = simulate(STAGES, FAST, [], 4, FULL._replace(slow=2.0), 8)
    assert slow.steps_per_s == pytest.approx(1 / (2 * fast))
    assert slow.waiting == pytest.approx(7 / 16)
    jittered = simulate(STAGES._replace(deviation=0.3), FAST, [], 4, FULL, 8)
    assert jittered.steps_per_s < 0.9 / fast


def test_shards_with_fewer_records_saves_and_a_slow_input_cost_records():
    full = simulate(STAGES, FAST, [], 4, FULL, 4)
    half = simulate(STAGES, FAST, [], 4, Load([1.0, 0.0] * 4), 4)
    assert half.records_per_s < full.records_per_s
    assert half.steps_per_s == pytest.approx(1 / (0.01 + 0.002 + 4 * 0.0015))
    saved = simulate(STAGES, FAST, [], 4, FULL._replace(save_every_s=10.0), 4)
    assert full.records_per_s / saved.records_per_s == pytest.approx(1 + 0.12 / 10)
    waiting = simulate(STAGES, FAST, [], 4, FULL._replace(arrival_s=5.0, linger_s=1.0), 4)
    assert waiting.steps_per_s == pytest.approx(1.0)
    assert waiting.records_per_s == pytest.approx(8 * 4 / 5, rel=0.1)


def round_of(step_ms: dict[str, float], number: int = 0, elsewhere: float = 0.0) -> Run:
    """Return a round in which sides learn a batch in a step."""
    sides = {
        side: {
            "records_per_s": 1e3 * BATCH / time_ms,
            "step_ms": time_ms,
            "step_log_deviation": 0.1,
            "copy_ms": 1.0,
            "cores_elsewhere": elsewhere,
        }
        for side, time_ms in step_ms.items()
    }
    return {"round": number, "measured": sides}


def measured_rounds(step_s: float, shard_s: float, sample_s: float) -> Measured:
    sizes = {"1 rank": (2, 16), "1 rank, 2 shards of 32": (2, 32), "1 rank, 4 shards of 16": (4, 16)}
    times = {side: 1e3 * (step_s + shards * (shard_s + n * sample_s)) for side, (shards, n) in sizes.items()}
    return Measured([round_of(times)], [round_of({"1 rank": times["1 rank"] + 1})], [])


def test_the_parts_of_a_step_are_fitted_and_those_below_zero_are_reported():
    found = measured_rounds(0.01, 0.002, 0.001)
    assert measured.stages(found)[:3] == pytest.approx((0.01, 0.002, 0.001))
    assert measured.below_zero(found) == {}
    found = measured_rounds(-0.01, 0.02, 0.01)
    assert measured.stages(found).step_s == 0.0
    assert measured.below_zero(found) == {"step_s": pytest.approx(-0.01)}


@pytest.mark.parametrize(
    ("ms", "words"), [(50, "two ranks were"), (92, "no clear difference"), (120, "two threads in")]
)
def test_a_difference_of_less_than_a_tenth_is_not_clear(ms: float, words: str):
    found = [round_of({"2 ranks": ms + shift, "2 threads": 100}, number) for number, shift in enumerate((0, 30, -30))]
    assert words in page.advice("cnn", found)


def test_steps_beside_an_idle_rank_are_counted_by_second():
    found = [round_of({"both ranks have records": 20, "only rank 0 has records": ms}, ms, 0.2) for ms in (8, 10, 16)]
    line = page.idle_rank("cnn", found)
    assert "100.0 (62.5-125.0) steps/s beside a rank without records, 50.0 (50.0-50.0) if both" in line
    assert line.endswith("Rounds: 3, elsewhere: **0.20**.")


def test_two_ranks_that_are_as_fast_as_one_have_half_of_its_efficiency():
    assert measured.efficiency([round_of({"1 rank": 10, "2 ranks": 10})]) == [pytest.approx(0.5)]
