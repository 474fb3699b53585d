"""Images are copied to a GPU from pinned memory. The GPU is a fake. `check_cuda.py` does the same with a real one."""

from typing import Any, cast

import numpy as np
import torch
from digit_stream import DIGITS_NHWC, batch, digits_of, settings
from torch import Tensor
from torch.overrides import TorchFunctionMode

from stream_learner.learning.memory import BalancedMemory, Replay
from stream_learner.learning.placement import filled
from stream_learner.learning.predicted import Predicted
from stream_learner.learning.trainers import Trainer
from stream_learner.learning.weighting import Weights

CUDA = torch.device("cuda")


class FakeGpu(TorchFunctionMode):
    """Keeps the tensors of a GPU in memory. Notes which copies of images waited or were not from pinned memory."""

    def __init__(self):
        super().__init__()
        self.images = 0
        self.slow: list[torch.Size] = []
        self._pinned: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.pop("pin_memory", False):
            self._pinned.append(func(*args, **kwargs))
            return self._pinned[-1]
        if func is Tensor.to and args[1] == CUDA:
            if args[0].ndim == 4:
                self.images += 1
                if not (kwargs.get("non_blocking") and any(args[0] is pinned for pinned in self._pinned)):
                    self.slow.append(args[0].shape)
            return args[0].clone()
        return func(*args, **kwargs)


class Echo:
    """A trainer whose predictions are the images."""

    def predict(self, images_NHWC: Tensor) -> tuple[Tensor, Tensor]:
        return images_NHWC, images_NHWC


def test_the_streams_images_are_copied_from_pinned_memory():
    samples = batch(digits_of(range(10), 10)).samples
    with FakeGpu() as gpu:
        predicted = Predicted.by(cast(Trainer, Echo()), samples, {str(i): i for i in range(10)}, CUDA)
    assert np.array_equal(predicted.images_NHWC.numpy(), [sample.pixels_HWC for sample in samples])
    assert (gpu.images, gpu.slow) == (1, [])


def test_replayed_images_are_copied_from_pinned_memory():
    given = settings()
    memory = BalancedMemory(DIGITS_NHWC.shape[1:], 100, 10**6, 500, 0, cache_bytes=2 * DIGITS_NHWC[0].nbytes)
    replay = Replay(given, memory, Weights(given.weights), CUDA, with_logits=False)
    samples = batch(digits_of(range(10), 10)).samples
    for sample in samples:
        memory.add(sample, int(sample.label), 1.0, 0)
    with FakeGpu() as gpu:
        drawn = replay.draw(4.0)
    of_label = {int(sample.label): sample.pixels_HWC for sample in samples}
    assert len(drawn.labels) == 4 * given.replay_size
    assert np.array_equal(drawn.images_NHWC.numpy(), [of_label[label] for label in drawn.labels.tolist()])
    assert (gpu.images, gpu.slow) == (1, [])


def test_an_empty_memory_gives_no_images():
    given, cpu = settings(), torch.device("cpu")
    memory = BalancedMemory(DIGITS_NHWC.shape[1:], 100, 10**6, 500, 0)
    drawn = Replay(given, memory, Weights(given.weights), cpu, with_logits=False).draw(1.0)
    assert drawn.images_NHWC.shape == (0, *DIGITS_NHWC.shape[1:])


def test_the_cpu_computes_on_the_memory_that_was_filled():
    filled_in: list[np.ndarray] = []
    made = filled((2, 3), lambda out: filled_in.append(out), torch.device("cpu"))
    filled_in[0][:] = 7
    assert made.tolist() == [[7] * 3] * 2
