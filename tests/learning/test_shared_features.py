"""A batch's first step uses the features of the prediction before it, if they are the same, and learns the same."""

import numpy as np
import pytest
from digit_stream import driver_of, learned, settings, stream

from stream_learner.config import Settings
from stream_learner.learning.strategies import Losses, Step
from stream_learner.learning.strategies.finetune import FineTune


class Computes(FineTune):
    """Calls the network itself, so it shares nothing."""

    def losses(self, step: Step) -> Losses:
        return super().losses(step._replace(features_NF=None))


def alone(strategy: str, **overrides) -> Settings:
    """Return settings for steps that learn the batch as it was predicted."""
    return settings(learning__strategy=strategy, learning__optimizer="adam", learning__average_decay=0.0, **overrides)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("more", [{}, {"learning__steps_per_batch": 2}, {"model__freeze": True}])
@pytest.mark.parametrize("model", ["mlp", "cnn", "rnn"])
def test_the_same_is_learned(model, more, precision):
    ends = []
    for strategy in ("finetune", f"{__name__}:Computes"):
        run = alone(strategy, model__name=model, learning__precision=precision, **more)
        ends.append(learned(run, stream()).snapshot().tensors)
    one, other = ends
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("overrides", "passes"),
    [
        ({"model__name": "cnn"}, 1),
        ({"model__name": "resnet18_slim", "model__freeze": True}, 1),
        ({"model__name": "resnet18_slim"}, 2),
        ({"model__name": "cnn", "learning__augment": ["crop"]}, 2),
        ({"model__name": "cnn", "learning__steps_per_batch": 2}, 2),
    ],
)
def test_features_are_computed_once_where_they_are_the_same(overrides, passes):
    driver, calls = driver_of(alone("finetune", **overrides)), []
    driver.learner.network.body.register_forward_hook(lambda *_: calls.append(1))
    batches = stream()[:3]
    for batch in batches:
        driver.learn(batch)
    assert len(calls) == passes * len(batches)
