"""Parse the labels of a data set as the worker does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stream_learner.contract.vocabulary import Reason
from stream_learner.errors import DataError
from stream_learner.formats.labels import parse_label
from stream_learner.formats.record import RejectError
from stream_learner.local.faults import Fault

# Text may be stored as bytes. Whole numbers may be stored as floats, as pandas does when values are missing.
STANDS_FOR = {bytes: str, float: int}


class Labelled(NamedTuple):
    """The classes in order, the class index of each example, and the examples without a usable label as faults."""

    labels: list[str]
    named: bool
    targets: list[int]
    faults: list[Fault]


def classify(root: Path, values: Sequence[Any], places: Sequence[str], names: Sequence[str] | None) -> Labelled:
    """Assign a class to every example. Values that the worker treats as the same label form one class.

    If there are `names`, numbers are indices into this list, and the classes have the order of the list. Otherwise the
    classes are sorted as numbers or as text. The worker's own function parses the labels. Raises DataError when the
    values have several types.
    """
    kinds = {STANDS_FOR.get(type(value), type(value)) for value in values if value is not None}
    if len(kinds) > 1:
        listed = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise DataError(f"the labels in {root} have several types ({listed}); convert them to one type")
    numbers = kinds == {int}
    names = names if numbers else None  # labels that are text are names already
    texts: dict[Any, str] = {}
    reasons: dict[Any, str] = {}
    for value in dict.fromkeys((*range(len(names or ())), *values)):
        try:
            texts[value] = str(parse_label(_meant(value, names)))
        except RejectError as reject:
            reasons[value] = reject.message
    ordered = sorted(texts) if numbers else sorted(texts, key=texts.__getitem__)
    labels = list(dict.fromkeys(texts[value] for value in ordered))
    index = {label: position for position, label in enumerate(labels)}
    return Labelled(
        labels,
        names is not None,
        [index[texts[value]] for value in values if value in texts],
        [Fault(place, reasons[value]) for place, value in zip(places, values, strict=True) if value in reasons],
    )


def _meant(value: Any, names: Sequence[str] | None) -> Any:
    """Return the label that a stored value stands for. Raises RejectError (`bad_label`)."""
    if isinstance(value, float):
        if not value.is_integer():
            raise RejectError(Reason.BAD_LABEL, f"the label {value} is not a whole number")
        value = int(value)
    if not isinstance(value, int):
        return value
    if names is None:
        return str(value)
    if not 0 <= value < len(names):
        raise RejectError(Reason.BAD_LABEL, f"the label {value} is not an index into the {len(names)} class names")
    return names[value]
