"""From a record's bytes to a sample. No Kafka, no torch."""

from stream_learner.contract.vocabulary import Reason
from stream_learner.formats.format import Format
from stream_learner.formats.record import Fields, Record, RejectError, RetryLaterError

__all__ = ["Fields", "Format", "Reason", "Record", "RejectError", "RetryLaterError"]
