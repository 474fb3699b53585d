"""Labels and their class indices: when a label becomes a class, and when a class retires."""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from stream_learner.config import Settings
from stream_learner.contract.manifest import MAX_CLASSES
from stream_learner.contract.vocabulary import Label, Reason
from stream_learner.formats.labels import MAX_LABELS_BYTES, LabelRules, encoded_bytes
from stream_learner.formats.record import RejectError
from stream_learner.learning.stored import Count, parse

MAX_PENDING = 2_000


class Stored(Struct):
    labels: list[Label]
    retired: list[tuple[Count, Count | None]]
    pending: list[tuple[Label, Count]]


class Classes:
    """The classes of a run. Each label keeps its index forever.

    A class retires when the settings make its label an alias or no longer allow the label. The index of a retired class
    is never used for another label. A label that returns counts as a new label, but gets its old index again.
    """

    def __init__(self, settings: Settings):
        """Begin without classes. Raises UsageError when `[labels]` contradicts itself."""
        self._rules = LabelRules.from_settings(settings.labels)
        self._max_classes = settings.model.max_classes
        self._min_records = settings.labels.min_records
        self.labels: list[Label] = []
        """By class index."""
        self.retired: dict[int, int | None] = {}
        """Retired indices, in the order of retiring, each with the index that took over its samples, or None."""
        self.index_of: dict[Label, int] = {}
        """Index of each label, including labels of retired classes."""
        self._pending = Pending()
        self.labels_bytes = 0
        """Bytes of all labels as a JSON list, as in manifests."""

    @property
    def in_use(self) -> int:
        """Number of classes that are not retired."""
        return len(self.labels) - len(self.retired)

    def knows(self, label: Label) -> bool:
        """Return whether the label is that of a class that is not retired. Then `admit` changes nothing."""
        index = self.index_of.get(label)
        return index is not None and index not in self.retired

    def admit(self, label: Label) -> int:
        """Return the class index of a record's label. The call may make the label a class.

        Raises RejectError (`too_many_classes`, `rare_label`).
        """
        if self.knows(label):
            return self.index_of[label]
        if why := self._no_room_for(label):
            raise RejectError(Reason.TOO_MANY_CLASSES, why)
        if self._min_records > 1 and (seen := self._pending.count(label)) < self._min_records:
            message = f"label {label!r} is new: it has {seen} records, labels.min_records = {self._min_records}"
            raise RejectError(Reason.RARE_LABEL, message)
        return self._take(label)

    def _no_room_for(self, label: Label) -> str | None:
        """Return why a label cannot become a class, or None if the label can."""
        new = label not in self.index_of
        if self.in_use >= self._max_classes or (new and len(self.labels) >= MAX_CLASSES):
            return (
                f"label {label!r} would be class {self.in_use + 1}; model.max_classes = {self._max_classes}, and a run "
                f"has at most {MAX_CLASSES} labels"
            )
        if new and self.labels_bytes + encoded_bytes(label) > MAX_LABELS_BYTES:
            return f"with label {label!r}, the labels of all classes would take more than {MAX_LABELS_BYTES} bytes"
        return None

    def retire(self) -> list[tuple[int, int | None]]:
        """Retire the classes whose labels the settings make aliases or do not allow.

        Return the newly retired indices, each with the index that takes over its samples, or None. The learner calls
        `retire` once, after it loads a state, and then moves the samples.
        """
        retiring: dict[int, int | None] = {}
        for index, label in enumerate(tuple(self.labels)):
            if index in self.retired or (meant := self._rules.resolve(label)) == label:
                continue
            retiring[index] = None if meant is None else self._take(meant)
        self.retired |= retiring
        return list(retiring.items())

    def _take(self, label: Label) -> int:
        """Make the label a class, unless it is a class already, and return its index."""
        self._pending.forget(label)
        if label not in self.index_of:
            self._add(label)
        index = self.index_of[label]
        self.retired.pop(index, None)
        return index

    def _add(self, label: Label) -> None:
        self.index_of[label] = len(self.labels)
        self.labels.append(label)
        self.labels_bytes += encoded_bytes(label)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON: lists of pairs, because JSON keys would turn the label 7 into "7"."""
        return {
            "labels": list(self.labels),
            "retired": [list(pair) for pair in self.retired.items()],
            "pending": self._pending.state_dict(),
        }

    def load_state_dict(self, document: Mapping[str, Any]) -> None:
        """Restore a state from `state_dict`. Raises ValueError when it is malformed."""
        stored = parse(document, Stored)
        for label in stored.labels:
            self._add(label)
        if len(self.index_of) < len(self.labels):
            raise ValueError("a label is in labels twice")
        self.retired = dict(stored.retired)
        indices = {index for pair in stored.retired for index in pair if index is not None}
        if len(self.retired) < len(stored.retired) or max(indices, default=-1) >= len(self.labels):
            raise ValueError(f"retired must hold different indices of the {len(self.labels)} classes")
        self._pending.load_state_dict(stored.pending)


class Pending:
    """Counts of records with labels that are not classes yet, in bounded memory.

    Misra and Gries 1982, "Finding repeated elements": while all 2,000 places are taken, each record with another label
    lowers every count by one. Counts are never too high, so labels that occur once never become classes. A count is too
    low by at most 1/2,000 of the records counted here. So a label becomes a class if more than 1 in 2,000 of these
    records carry it.
    """

    def __init__(self):
        self._counts: dict[Label, int] = {}

    def count(self, label: Label) -> int:
        """Count a record with this label, and return the label's count, at least 1."""
        if label in self._counts or len(self._counts) < MAX_PENDING:
            self._counts[label] = self._counts.get(label, 0) + 1
            return self._counts[label]
        self._counts = {other: count - 1 for other, count in self._counts.items() if count > 1}
        return 1

    def forget(self, label: Label) -> None:
        """Drop the label's count."""
        self._counts.pop(label, None)

    def state_dict(self) -> list[Any]:
        return [list(pair) for pair in self._counts.items()]

    def load_state_dict(self, counts: list[tuple[Label, Count]]) -> None:
        """Restore a state from `state_dict`. Raises ValueError when it is malformed."""
        self._counts = dict(counts)
        if len(self._counts) < len(counts) or len(counts) > MAX_PENDING or not all(self._counts.values()):
            raise ValueError("pending must hold a count above 0 for each new label")


def check_room(document: Mapping[str, Any], settings: Settings) -> None:
    """Raise ValueError when a state has more classes or longer labels than the settings allow.

    Classes that `[labels]` retires do not count. All labels must fit in a manifest.
    """
    classes = Classes(settings)
    classes.load_state_dict(document)
    classes.retire()
    if classes.in_use > settings.model.max_classes:
        raise ValueError(f"it has {classes.in_use} classes, more than model.max_classes = {settings.model.max_classes}")
    if classes.labels_bytes > MAX_LABELS_BYTES:
        raise ValueError(f"its labels and the labels in labels.aliases take more than {MAX_LABELS_BYTES} bytes")
