"""torch's optimizers without its compiler: the same steps, and no import of it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from stream_learner.learning.optimizers import without_wrappers

LEARNS = """
import sys
from digit_stream import learned, settings, stream
for optimizer in ("muon", "adam", "sgd"):
    learned(settings(learning__optimizer=optimizer), stream()[:2])
assert "torch.optim" in sys.modules
assert "torch._dynamo" not in sys.modules
"""


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
        (torch.optim.Adam, {"weight_decay": 0.1}),
        (torch.optim.AdamW, {"weight_decay": 0.1}),
    ],
)
def test_steps_are_torchs_own(kind: type[torch.optim.Optimizer], arguments: dict[str, float]):
    def weights(optimizer: type[torch.optim.Optimizer]) -> torch.Tensor:
        torch.manual_seed(0)
        layer = nn.Linear(8, 8)
        steps = optimizer(layer.parameters(), lr=0.01, fused=True, **arguments)  # pyright: ignore[reportCallIssue]
        for _ in range(5):
            steps.zero_grad()
            layer(torch.randn(4, 8)).square().sum().backward()
            steps.step()
        return layer.weight.detach()

    assert torch.equal(weights(without_wrappers(kind)), weights(kind))


def test_learning_imports_no_compiler():
    subprocess.run([sys.executable, "-c", LEARNS], check=True, cwd=Path(__file__).parent)
