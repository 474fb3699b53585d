"""Decode the bytes of records to samples. Imports neither Kafka's client nor torch."""

from stream_learner.contract.vocabulary import Reason
from stream_learner.formats.format import Format
from stream_learner.formats.record import Fields, Record, RejectError, RetryLaterError, Rows

__all__ = ["Fields", "Format", "Reason", "Record", "RejectError", "RetryLaterError", "Rows"]
