"""The loss of each strategy, compared with the formula of its paper, computed sample by sample."""

import math
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn

from stream_learner.learning.strategies import Minibatch, Step, Strategy
from stream_learner.registry import STRATEGIES

LOGITS = [[1.0, -2.0, 0.5], [0.3, 0.2, -1.0], [2.0, 1.0, -0.4], [-0.5, 1.5, 0.7]]
TAUGHT = [[0.5, 0.0, 1.0], [1.0, -1.0, 0.0], [0.0, 2.0, 0.0], [0.2, 0.4, 0.9]]


class Answers(nn.Module):
    """A network that answers with the row of a table that an image's one pixel names."""

    def __init__(self, table: list[list[float]]):
        super().__init__()
        self.table = torch.tensor(table)
        self.head = nn.Linear(1, len(table[0]))

    def forward(self, images_NHWC: Tensor) -> Tensor:
        return self.table[images_NHWC.flatten().long()]


def minibatch(rows: Sequence[int], labels: Sequence[int], logits: list[list[float]] | None = None) -> Minibatch:
    images_NHWC = torch.tensor(rows, dtype=torch.uint8).view(-1, 1, 1, 1)
    kept = None if logits is None else torch.tensor(logits)
    return Minibatch(images_NHWC, torch.tensor(labels), torch.ones(len(rows)), kept)


def losses(
    strategy: Strategy,
    stream: tuple[int, int] = (0, 1),
    replayed: tuple[int, int] = (2, 0),
    logits: list[list[float]] | None = None,
) -> list[float]:
    """Of two samples of the stream and two from the memory, of these classes."""
    memory = minibatch([2, 3], replayed, logits)
    step = Step(Answers(LOGITS), Answers(TAUGHT), minibatch([0, 1], stream), memory)
    if (sums := strategy.sums(step)) is not None:
        strategy.begin(sums)
    found = strategy.losses(step)
    assert found.weights.tolist() == [1.0] * len(found.losses)
    return found.losses.tolist()


def softmax(row: list[float], classes: Sequence[int] = (0, 1, 2)) -> dict[int, float]:
    total = sum(math.exp(row[c]) for c in classes)
    return {c: math.exp(row[c]) / total for c in classes}


def cross_entropies(labels: Sequence[int], table: list[list[float]] = LOGITS) -> list[float]:
    return [-math.log(softmax(row)[label]) for row, label in zip(table, labels, strict=False)]


def test_finetune_has_the_streams_samples_alone():
    assert losses(STRATEGIES["finetune"]()) == pytest.approx(cross_entropies([0, 1]))


def test_er_has_the_cross_entropy_of_both():
    assert losses(STRATEGIES["er"]()) == pytest.approx(cross_entropies([0, 1, 2, 0]))


def test_er_ace_lets_the_streams_samples_compete_with_their_own_classes_only():
    among = [-math.log(softmax(LOGITS[row], (0, 1))[row]) for row in (0, 1)]
    assert losses(STRATEGIES["er_ace"]()) == pytest.approx(among + cross_entropies([0, 1, 2, 0])[2:])


def test_er_la_adds_the_log_of_how_often_each_class_came_lately():
    strategy = STRATEGIES["er_la"]()
    counts = [2 / 4, 1 / 4, 1 / 4]
    adjusted = [[z + math.log(p) for z, p in zip(row, counts, strict=True)] for row in LOGITS]
    assert losses(strategy) == pytest.approx(cross_entropies([0, 1, 2, 0], adjusted))
    then, now = counts, [4 / 4, 0.0, 0.0]
    lately = [(0.99 * a + b) / 1.99 for a, b in zip(then, now, strict=True)]
    adjusted = [[z + math.log(p) for z, p in zip(row, lately, strict=True)] for row in LOGITS]
    assert losses(strategy, (0, 0), (0, 0)) == pytest.approx(cross_entropies([0, 0, 0, 0], adjusted), rel=1e-4)


def test_er_la_gives_a_class_that_has_not_come_next_to_no_chance():
    strategy = STRATEGIES["er_la"]()
    adjusted = [[row[0] + math.log(0.5), row[1] + math.log(0.5), row[2] + math.log(1e-8)] for row in LOGITS]
    assert losses(strategy, (0, 1), (0, 1)) == pytest.approx(cross_entropies([0, 1, 0, 1], adjusted))


@pytest.fixture
def no_denormals() -> Iterator[None]:
    """Flush denormal numbers to 0, as in a learner's process."""
    torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)


@pytest.mark.usefixtures("no_denormals")
def test_er_la_learns_from_weights_next_to_nothing():
    light = minibatch([0, 1], [0, 1])._replace(weights=torch.full((2,), 1e-37))
    step, strategy = Step(Answers(LOGITS), None, light, light), STRATEGIES["er_la"]()
    strategy.begin(strategy.sums(step))
    assert strategy.losses(step).losses.isfinite().all()


def test_derpp_compares_the_logits_of_classes_that_were_known_then():
    then = [[1.0, 2.0, math.nan], [0.0, 0.0, 0.0]]
    distances = [((2 - 1) ** 2 + (1 - 2) ** 2) / 2, (0.5**2 + 1.5**2 + 0.7**2) / 3]
    ce = cross_entropies([0, 1, 2, 0])
    expected = ce[:2] + [c + 0.2 * distance for c, distance in zip(ce[2:], distances, strict=True)]
    assert losses(STRATEGIES["derpp"](), logits=then) == pytest.approx(expected)


def test_mkd_draws_predictions_towards_those_of_the_average():
    expected = []
    for row, taught, ce in zip(LOGITS, TAUGHT, cross_entropies([0, 1, 2, 0]), strict=True):
        p, q = softmax([z / 2 for z in taught]), softmax([z / 2 for z in row])
        divergence = sum(p[c] * math.log(p[c] / q[c]) for c in p)
        expected.append(ce + 0.25 * 2**2 * divergence)
    assert losses(STRATEGIES["mkd"]()) == pytest.approx(expected)
