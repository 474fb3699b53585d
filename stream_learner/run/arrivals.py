"""Read the records of the predictions topic, which are never samples."""

from collections.abc import Callable
from typing import NamedTuple

from stream_learner.config import Settings
from stream_learner.contract.predictions import Prediction, decode_prediction
from stream_learner.contract.vocabulary import Label
from stream_learner.formats.labels import LabelRules
from stream_learner.formats.record import Record, Rows, Sample


class Arrival(NamedTuple):
    """A record of the predictions topic. `prediction` is None if it is not a prediction of this run.

    `label` is the predicted label, or the label that it stands for (`labels.aliases`).
    """

    prediction: Prediction | None
    label: Label
    timestamp_ms: int


Read = Callable[[Record], Sample | Arrival | Rows | None]
"""Decodes a record of the input as `Decode` does. Returns an Arrival for a record of the predictions topic."""


def with_predictions(settings: Settings, decode: Callable[[Record], Sample | Rows | None]) -> Read:
    """Wrap `decode` to read the records of the predictions topic, if `served.evaluate` is true."""
    topic, rules = settings.predictions_topic, LabelRules.from_settings(settings.labels)
    if topic is None:
        return decode

    def read(record: Record) -> Sample | Arrival | Rows | None:
        if record.topic != topic:
            return decode(record)
        try:
            prediction = decode_prediction(record.key, record.value)
        except ValueError:
            return Arrival(None, "", record.timestamp_ms)
        if prediction.run_id != settings.run.id:
            return Arrival(None, "", record.timestamp_ms)
        label = rules.aliases.get(str(prediction.label), prediction.label)
        return Arrival(prediction, label, record.timestamp_ms)

    return read
