"""The figures of the records between two snapshots, as published to the metrics topic."""

from collections.abc import Iterable

import msgspec

from stream_learner.contract import documents
from stream_learner.contract.documents import Count, Epoch, RunId, Sequence, Time
from stream_learner.contract.spans import Positions, Spans, Stretches
from stream_learner.contract.vocabulary import Label

WINDOW_SCHEMA_VERSION = 3
RECENT_SAMPLES = 1_000
# Each has the spans of all partitions that its batch read.
MAX_DRIFTS = 20
COMBINED = "combined"
"""Name of the weights that a sample's factors make, beside those of the policies."""


class ClassAccuracy(msgspec.Struct, frozen=True):
    """One class: how many samples were scored and how many of them were right."""

    label: Label
    correct: Count
    total: Count


class Accuracy(msgspec.Struct, frozen=True):
    """Accuracy over samples. `accuracy` is correct / total (0..1), None without samples; so is `mean_recall`, the
    mean over classes of the class's own accuracy."""

    correct: Count
    total: Count
    accuracy: float | None
    mean_recall: float | None
    per_class: list[ClassAccuracy]


def accuracy(counts: Iterable[tuple[Label, int, int]]) -> Accuracy:
    """Accuracy from (label, correct, total) of each class."""
    per_class = [ClassAccuracy(label, correct, total) for label, correct, total in counts if total]
    correct = sum(c.correct for c in per_class)
    total = sum(c.total for c in per_class)
    return Accuracy(
        correct=correct,
        total=total,
        accuracy=correct / total if total else None,
        mean_recall=sum(c.correct / c.total for c in per_class) / len(per_class) if per_class else None,
        per_class=per_class,
    )


class Distribution(msgspec.Struct, frozen=True):
    """Of a policy's factors, or of the weights that come of them; at least one."""

    count: Count
    mean: float
    min: float
    max: float


class Confusion(msgspec.Struct, frozen=True):
    """How many samples of class `label` were taken for class `prediction`."""

    label: Label
    prediction: Label
    count: Count


class Recent(msgspec.Struct, frozen=True, kw_only=True):
    """The run's last 1,000 training samples (fewer at its start), each predicted before it was learned."""

    accuracy: Accuracy
    faded_accuracy: float
    """Over the whole run, a sample's weight fading by 1/1,000 with each later one (Gama, Sebastiao, Rodrigues 2013)."""
    kappa: float | None
    """Cohen's kappa: 1 is perfect, 0 is chance; None where chance is always right (one class)."""
    calibration_error: float | None
    """Expected calibration error over 15 bins (Guo et al. 2017): how far confidence is from accuracy."""
    confusions: list[Confusion]
    """The ten most frequent, most frequent first."""


class ClassForgetting(msgspec.Struct, frozen=True, kw_only=True):
    """One class: the `best` recall that it had at an earlier release, and how much of it is gone: negative when the
    recall is better than ever."""

    label: Label
    best: float
    forgetting: float


class Forgetting(msgspec.Struct, frozen=True, kw_only=True):
    """Forgetting on the test samples, over the classes that an earlier release was tested on; `mean` is None without
    any (Chaudhry et al. 2018)."""

    mean: float | None
    per_class: list[ClassForgetting]


class Drift(msgspec.Struct, frozen=True):
    """The prequential error rose."""

    records: Count
    """Input records of the run up to the end of the batch in which it was seen."""
    spans: Spans
    """Offsets of that batch."""
    error_before: float
    """Error (0..1) of the samples that the detector dropped as being of the past."""
    error_after: float
    """Error of those that it kept."""


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """A record of the metrics topic. Offsets are half-open, times ISO 8601 in UTC, accuracies 0..1.

    Every input record is counted in exactly one window, and there in exactly one of `splits`, `rejected` and
    `tombstones`.
    """

    schema_version: int = WINDOW_SCHEMA_VERSION
    run_id: RunId
    epoch: Epoch
    sequence: Sequence
    """Epoch and sequence of the checkpoint that was committed with this window."""
    created_at: Time
    spans: Spans
    """Start and end offset per topic and partition."""
    lost: Stretches = {}
    """Offsets among them whose records had fallen off retention before they were read, or were damaged on the brokers'
    disks, with `input.on_lost` at `continue`."""
    records: Count
    """Input records read."""
    splits: dict[str, Count]
    """Records used, by split."""
    rejected: dict[str, Count]
    """Records in the dead letters, by reason."""
    rejected_by_topic: dict[str, dict[str, Count]]
    """The same records, by input topic and reason."""
    tombstones: Count
    """Deletion markers (null values with a key) that were skipped."""
    timestamps: dict[str, Count]
    """Records whose timestamp is more than an hour ahead of the worker's clock (`future`), or no time at all, such as
    -1 or seconds (`unknown`)."""
    learned: Count
    """Training samples that were learned."""
    steps: Count
    """Optimizer updates."""
    loss: float | None
    """Mean weighted loss of the steps."""
    weights: dict[str, Distribution] = {}
    """Of the samples learned, by policy (`weights.policies`), and `combined`: their product, clipped."""
    prequential: Accuracy
    """Each batch predicted before it was learned."""
    validation: Accuracy | None
    """Held-out validation samples under the model of this window's release decision; None without a decision."""
    test: Accuracy | None
    """Held-out test samples, likewise."""
    calibration_error: float | None = None
    """Expected calibration error of that model on the validation samples."""
    forgetting: Forgetting | None = None
    """Recall on the test samples that earlier releases had and that model lacks."""
    recent: Recent | None = None
    """How the run's last training samples were predicted; None before the first."""
    drift_count: int
    """Drifts seen in this window."""
    drifts: list[Drift] = []
    """The first 20 of them. One change of the stream may be seen more than once, while the detector parts with
    what it remembers of the time before."""
    lag: Positions
    """Records behind the end of each partition when the window closed."""
    omitted: list[str] = []
    """Lists and maps that are empty because the window would not fit in its topic with them."""

    @property
    def order(self) -> tuple[int, int]:
        """Epoch and sequence: those of a run's newest window are the greatest."""
        return self.epoch, self.sequence


def decode_window(data: bytes) -> Window:
    """Decode a window. Raises ValueError when the bytes are not one of a schema version that this program knows."""
    try:
        window = documents.decode(data, Window)
        documents.check_time(window.created_at)
    except ValueError as error:
        raise ValueError(f"not a window: {error}") from None
    if window.schema_version != WINDOW_SCHEMA_VERSION:
        raise ValueError(f"window schema version {window.schema_version}; this program reads {WINDOW_SCHEMA_VERSION}")
    return window
