"""Windows: the figures of the records between two snapshots, as published to the metrics topic."""

from collections.abc import Iterable

import msgspec

from stream_learner.contract import documents
from stream_learner.contract.documents import Count, Epoch, RunId, Sequence, Time
from stream_learner.contract.spans import Positions, Spans, Stretches
from stream_learner.contract.vocabulary import Label

WINDOW_SCHEMA_VERSION = 3
RECENT_SAMPLES = 1_000
# Maximum number of drifts in a window. Each drift holds the spans of its batch, which can be large.
MAX_DRIFTS = 20
# Maximum number of releases in a window whose served predictions were scored.
MAX_SERVED_RELEASES = 20
COMBINED = "combined"
"""Name of the product of a sample's factors, next to the names of the policies."""


class ClassAccuracy(msgspec.Struct, frozen=True):
    """One class: the number of samples that were scored, and how many of them were correct."""

    label: Label
    correct: Count
    total: Count


class Score(msgspec.Struct, frozen=True):
    """An `Accuracy` without its classes."""

    correct: Count
    total: Count
    accuracy: float | None
    mean_recall: float | None


class Accuracy(msgspec.Struct, frozen=True):
    """Accuracy over samples. `accuracy` is correct / total (0..1). `mean_recall` is the mean of the classes' own
    accuracies. Both are None without samples."""

    correct: Count
    total: Count
    accuracy: float | None
    mean_recall: float | None
    per_class: list[ClassAccuracy]

    @property
    def overall(self) -> Score:
        """Return the figures over all classes."""
        return Score(self.correct, self.total, self.accuracy, self.mean_recall)


def accuracy(counts: Iterable[tuple[Label, int, int]]) -> Accuracy:
    """Compute the accuracy from (label, correct, total) of each class."""
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
    """Distribution of a policy's factors, or of the combined weights. It holds at least one value."""

    count: Count
    mean: float
    min: float
    max: float


class Confusion(msgspec.Struct, frozen=True):
    """The number of samples of class `label` that were predicted as class `prediction`."""

    label: Label
    prediction: Label
    count: Count


class Recent(msgspec.Struct, frozen=True, kw_only=True):
    """The run's last 1,000 training samples (fewer at its start), each predicted before it was learned."""

    accuracy: Accuracy
    faded_accuracy: float
    """Accuracy over the whole run. A sample's weight fades by 1/1,000 with each later sample (Gama, Sebastiao,
    Rodrigues 2013)."""
    kappa: float | None
    """Cohen's kappa: 1 is perfect, 0 is chance; None if chance is always right (one class)."""
    calibration_error: float | None
    """Expected calibration error over 15 bins (Guo et al. 2017): the difference between confidence and accuracy."""
    confusions: list[Confusion]
    """The ten most frequent confusions, most frequent first."""


class ClassForgetting(msgspec.Struct, frozen=True, kw_only=True):
    """Forgetting of one class. `best` is the best recall at an earlier release. `forgetting` is `best` minus the recall
    now. It is negative when the recall is higher than at any earlier release."""

    label: Label
    best: float
    forgetting: float


class Forgetting(msgspec.Struct, frozen=True, kw_only=True):
    """Forgetting on the test samples, over the classes of earlier releases (Chaudhry et al. 2018). `mean` is None
    without such classes."""

    mean: float | None
    per_class: list[ClassForgetting]


class Drift(msgspec.Struct, frozen=True):
    """A rise of the prequential error."""

    records: Count
    """Number of the run's input records up to the end of the batch in which the drift was found."""
    spans: Spans
    """Offsets of that batch."""
    error_before: float
    """Error (0..1) of the older samples, which the detector dropped."""
    error_after: float
    """Error (0..1) of the newer samples, which the detector kept."""


class ServedRelease(msgspec.Struct, frozen=True, kw_only=True):
    """The predictions of one release whose labels arrived."""

    epoch: Epoch
    release: Sequence
    accuracy: Accuracy
    """Accuracy of the predictions. The classes are the labels that arrived."""
    probability: float
    """Mean probability (0..1) of the predicted labels."""
    delay_s: Distribution | None
    """Seconds from a prediction to its label, by the timestamps of the two records; None if no timestamp is known."""


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """Delayed evaluation of served predictions: each is compared with the label that arrives later."""

    read: Count
    """Records of the predictions topic that were read."""
    invalid: Count
    """Records among them that are not predictions of this run."""
    without_id: Count
    """Predictions without an id, which no label can match."""
    repeated: Count
    """Predictions that repeat a waiting prediction: the same id, and the same release."""
    scored: Count
    """Predictions whose label arrived."""
    expired: Count
    """Predictions whose label did not arrive within `served.keep_s`."""
    dropped: Count
    """Predictions that were dropped to stay within `served.max_bytes`, or beyond 16 waiting predictions for one id."""
    waiting: Count
    """Predictions that wait for their label at the end of the window."""
    releases: list[ServedRelease]
    """The 20 releases with the most scored predictions, most first."""


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
    """Offsets in `spans` whose records were lost before they were read: retention deleted the records, or they were
    damaged on the brokers' disks. Input topics have none unless `input.on_lost` is `continue`."""
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
    """Records whose timestamp is more than an hour ahead of the worker's clock (`future`), or is not a time in
    milliseconds, such as -1 or seconds (`unknown`)."""
    learned: Count
    """Training samples that were learned."""
    steps: Count
    """Optimizer updates."""
    loss: float | None
    """Mean weighted loss of the steps."""
    weights: dict[str, Distribution] = {}
    """Factors of the learned samples, by policy (`weights.policies`). `combined` is the product of a sample's factors,
    clipped."""
    prequential: Accuracy
    """Accuracy of predictions made before each batch was learned."""
    validation: Accuracy | None
    """Accuracy of the candidate for release on the validation samples; None without a release decision."""
    test: Accuracy | None
    """Accuracy of the candidate on the test samples; None without a release decision."""
    calibration_error: float | None = None
    """Expected calibration error of the candidate on the validation samples."""
    forgetting: Forgetting | None = None
    """How far the candidate's recall on the test samples is below the best recall of earlier releases."""
    recent: Recent | None = None
    """Predictions of the run's last training samples; None before the first sample."""
    served: Served | None = None
    """Evaluation of served predictions; None unless `served.evaluate` is true."""
    drift_count: int
    """Number of drifts found in this window."""
    drifts: list[Drift] = []
    """The first 20 drifts. The detector may report one change of the stream more than once, while it still remembers
    samples from before the change."""
    lag: Positions
    """Number of messages between the learned position and the end of each partition when the window closed."""
    omitted: list[str] = []
    """Lists and maps that were left empty, because the full window would exceed the topic's size limit."""

    @property
    def order(self) -> tuple[int, int]:
        """Epoch and sequence. A run's newest window has the highest values."""
        return self.epoch, self.sequence


def decode_window(data: bytes) -> Window:
    """Decode a window. Raises ValueError for other bytes and for an unknown schema version."""
    try:
        window = documents.decode(data, Window)
        documents.check_time(window.created_at)
    except ValueError as error:
        raise ValueError(f"not a window: {error}") from None
    if window.schema_version != WINDOW_SCHEMA_VERSION:
        raise ValueError(f"window schema version {window.schema_version}; this program reads {WINDOW_SCHEMA_VERSION}")
    return window
