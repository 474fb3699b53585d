"""A recurrent network."""

from torch import Tensor, nn

from stream_learner.networks.classifier import ImageClassifier

UNITS = 128


class RNN(ImageClassifier):
    """A layer of 128 gated recurrent units (Cho et al. 2014, arXiv:1406.1078) that reads an image's rows, top first."""

    convolutional = False
    uses_threads = False
    same_in_training = True

    def __init__(self, classes: int, height: int, width: int, channels: int, mean: list[float], std: list[float]):  # noqa: ARG002
        super().__init__(_Rows(width * channels), UNITS, classes, mean, std)


class _Rows(nn.Module):
    """Layer that reads one row of W x C values in each of H steps, and returns the last hidden state [N, 128]."""

    def __init__(self, values: int):
        super().__init__()
        self.gru = nn.GRU(values, UNITS, batch_first=True)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        rows_NHV = x_NCHW.permute(0, 2, 3, 1).flatten(2)
        _, last_1NU = self.gru(rows_NHV)
        return last_1NU[0]
