"""Predictions of a served release, as servers publish them to the predictions topic."""

from typing import Annotated

import msgspec
from msgspec import Meta

from stream_learner.contract import documents
from stream_learner.contract.documents import Epoch, RunId, Sequence, Time
from stream_learner.contract.vocabulary import Label

PREDICTION_SCHEMA_VERSION = 1
MAX_ID_BYTES = 256
MAX_PROBABILITIES = 10
# Size limit of a prediction. It has room for the longest id and labels, even if a writer escapes each character.
MAX_PREDICTION_BYTES = 16 * 1024

Probability = Annotated[float, Meta(ge=0, le=1)]


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """A record of the predictions topic: the prediction of one image by one release.

    The record's key is the image's id in UTF-8, or null without an id. Its timestamp is the time of the prediction.
    """

    schema_version: int = PREDICTION_SCHEMA_VERSION
    run_id: RunId
    epoch: Epoch
    release: Sequence
    """Epoch and sequence of the checkpoint that published the release."""
    id: Annotated[str, Meta(min_length=1, max_length=MAX_ID_BYTES)] | None
    """Id of the image, at most 256 bytes in UTF-8. A label that arrives later has the same id. None without an id."""
    label: Label
    """The predicted label, with its type in the manifest (text or integer)."""
    probabilities: Annotated[
        dict[Annotated[str, Meta(max_length=256)], Probability], Meta(max_length=MAX_PROBABILITIES)
    ]
    """The largest probabilities (0..1), at most 10, by the text of the label. They include the predicted label's."""
    created_at: Time
    """Time of the prediction."""

    @property
    def key(self) -> bytes | None:
        """Return the record's key."""
        return None if self.id is None else self.id.encode()

    @property
    def probability(self) -> float:
        """Return the probability of the predicted label."""
        return self.probabilities[str(self.label)]

    def encode(self) -> bytes:
        """Return the record's value."""
        return msgspec.json.encode(self)


def decode_prediction(key: bytes | None, value: bytes | None) -> Prediction:
    """Decode a record of the predictions topic.

    Raises ValueError when the record is not a prediction, is too large, has an unknown schema version or a key that is
    not its id.
    """
    try:
        prediction = documents.decode(value or b"", Prediction, MAX_PREDICTION_BYTES)
        documents.check_time(prediction.created_at)
        own_key = prediction.key
    except ValueError as error:
        raise ValueError(f"not a prediction: {error}") from None
    if prediction.schema_version != PREDICTION_SCHEMA_VERSION:
        raise ValueError(
            f"prediction schema version {prediction.schema_version}; this program reads {PREDICTION_SCHEMA_VERSION}"
        )
    if own_key != key:
        raise ValueError("not a prediction: the key is not the id")
    if own_key is not None and len(own_key) > MAX_ID_BYTES:
        raise ValueError(f"not a prediction: the id is longer than {MAX_ID_BYTES} bytes")
    if str(prediction.label) not in prediction.probabilities:
        raise ValueError("not a prediction: the probability of the predicted label is missing")
    return prediction
