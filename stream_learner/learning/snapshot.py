"""What leaves the learner for publication: copies, so that training can go on."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from stream_learner.contract.manifest import Arithmetic, Decision, ModelSpec, Preprocessing
from stream_learner.contract.spans import Positions, Spans
from stream_learner.contract.vocabulary import Label
from stream_learner.contract.window import Accuracy, Forgetting, Recent
from stream_learner.learning.progress import Closed


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model as downstream would get it. `calibration_error` is on the validation samples, `forgetting` on the test
    samples; `evaluation` holds the latter and the model's predictions on them."""

    weights: dict[str, Tensor]
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
class Snapshot:
    """Everything needed to go on (`tensors`, `parts` and the JSON `document`), and what was learned since the last.

    `parts` are immutable bytes by digest: the memories' sealed segments, most of them in the last snapshot too.
    `candidate` and `decision` are there when a release was decided at this boundary; `discarded` are the offsets whose
    learning was undone when training then went back to the last release.
    """

    tensors: dict[str, Tensor]
    document: dict[str, Any]
    parts: dict[str, bytes]
    positions: Positions
    closed: Closed
    recent: Recent | None
    arithmetic: Arithmetic
    candidate: Candidate | None
    decision: Decision | None
    discarded: Spans | None
