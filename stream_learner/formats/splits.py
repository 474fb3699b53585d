"""Assign records to splits by a hash of the record alone."""

import hashlib

from stream_learner.contract.vocabulary import Split


def group(identity: bytes) -> int:
    """Hash an identity to an int64, at least 0. Records with the same identity are in the same split."""
    digest = hashlib.blake2b(identity, digest_size=8, person=b"group").digest()
    return int.from_bytes(digest, "big") >> 1


def assign(identity: bytes, validation: float, test: float) -> Split:
    """Draw a record's split by a stable hash of its identity: the same on every machine and in every run.

    `validation` and `test` are shares (0..1) of all records; the rest is train.
    """
    digest = hashlib.blake2b(identity, digest_size=8, person=b"split").digest()
    draw = int.from_bytes(digest, "big") / 2**64
    if draw < validation:
        return Split.VALIDATION
    return Split.TEST if draw < validation + test else Split.TRAIN
