"""Small networks: an MLP and a CNN."""

from torch import nn

from stream_learner.networks.classifier import ImageClassifier, require


class MLP(ImageClassifier):
    """Multilayer perceptron with two hidden layers of 64 units."""

    convolutional = False
    uses_threads = False
    same_in_training = True

    def __init__(self, classes: int, height: int, width: int, channels: int, mean: list[float], std: list[float]):
        body = nn.Sequential(
            nn.Flatten(), nn.Linear(height * width * channels, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()
        )
        super().__init__(body, 64, classes, mean, std)


class CNN(ImageClassifier):
    """Convolution with 32 filters of 3x3, max-pool 2, dense layer of 128 units, dropout 0.2."""

    same_in_training = True

    def __init__(self, classes: int, height: int, width: int, channels: int, mean: list[float], std: list[float]):
        require(4, height, width)
        flat = 32 * ((height - 2) // 2) * ((width - 2) // 2)
        body = nn.Sequential(
            nn.Conv2d(channels, 32, 3),
            nn.MaxPool2d(2),  # before the ReLU, which then has a quarter of the values; the result is the same
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(flat, 128),
            nn.ReLU(),
        )
        super().__init__(body, 128, classes, mean, std)
        self.head_dropout = nn.Dropout(0.2)
