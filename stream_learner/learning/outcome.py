"""The outcome of a decision about a release."""

from dataclasses import dataclass

from torch import Tensor

from stream_learner.contract.manifest import Decision, ModelSpec, Preprocessing
from stream_learner.contract.vocabulary import Label
from stream_learner.contract.window import Accuracy, Forgetting


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that may be released, with its scores.

    `parameters` is the network's state dict, and `retired` holds the indices of retired classes. `calibration_error` is
    measured on the validation samples, and `forgetting` on the test samples. `evaluation` holds the test samples and
    the model's predictions on them. `logits`, float32 [N, classes], are the model's logits on the test samples.
    """

    parameters: dict[str, Tensor]
    model: ModelSpec
    labels: list[Label]
    retired: list[int]
    preprocessing: Preprocessing
    validation: Accuracy
    test: Accuracy
    calibration_error: float | None
    forgetting: Forgetting
    evaluation: dict[str, Tensor]
    logits: Tensor


@dataclass(frozen=True, slots=True)
class Outcome:
    """A candidate, the decision about it, and whether training then returned to the last release."""

    candidate: Candidate
    decision: Decision
    rolled_back: bool
