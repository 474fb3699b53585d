"""The outcome of a decision to release."""

from dataclasses import dataclass

from torch import Tensor

from stream_learner.contract.manifest import Decision, ModelSpec, Preprocessing
from stream_learner.contract.vocabulary import Label
from stream_learner.contract.window import Accuracy, Forgetting


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model as downstream would get it.

    `parameters` is the network's state dict. `calibration_error` is on the validation samples, `forgetting` on the test
    samples. `evaluation` holds the test samples and the model's predictions on them.
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


@dataclass(frozen=True, slots=True)
class Outcome:
    """A decision about a candidate, and whether training went back to the last release with it."""

    candidate: Candidate
    decision: Decision
    rolled_back: bool
