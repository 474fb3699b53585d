"""Admission of a batch's labels. Every rank admits the labels of all shards, in the order of shards."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from stream_learner.contract.vocabulary import Split
from stream_learner.formats.record import RejectError, Sample
from stream_learner.learning.classes import Classes
from stream_learner.learning.learned import Refused
from stream_learner.learning.parallel import Parallel

SPLITS = list(Split)


class Admitted(NamedTuple):
    """Samples of a batch by the admission of their labels.

    `refused` are the local shards' samples whose labels were refused. `counts`, int64 [shards, splits], are the numbers
    of the other samples of all shards. `records` is the number of the batch's input records.
    """

    refused: list[Refused]
    counts: np.ndarray
    records: int

    @property
    def training(self) -> list[int]:
        """Number of training samples of each shard."""
        return self.counts[:, SPLITS.index(Split.TRAIN)].tolist()


def admit(
    classes: Classes, parallel: Parallel, samples: Sequence[Sequence[Sample]], records: Sequence[int]
) -> Admitted:
    """Admit the labels of a batch. `samples` and `records` are those of the local shards."""
    rows = []
    for of_shard, read in zip(samples, records, strict=True):
        splits = [sample.split for sample in of_shard]
        known = all(classes.knows(sample.label) for sample in of_shard)
        rows.append([not known, read, *map(splits.count, SPLITS)])
    rows = parallel.gathered(np.array(rows, np.int64))
    admitted = Admitted([], rows[:, 2:], int(rows[:, 1].sum()))
    if rows[:, 0].any():
        labels = [[[sample.label, SPLITS.index(sample.split)] for sample in of_shard] for of_shard in samples]
        for shard, of_shard in enumerate(parallel.objects(labels)):
            for position, (label, split) in enumerate(of_shard):  # pyright: ignore[reportArgumentType, reportGeneralTypeIssues]
                try:
                    classes.admit(label)
                except RejectError as reject:
                    admitted.counts[shard, split] -= 1
                    if shard in parallel.local:
                        local = shard - parallel.local.start
                        admitted.refused.append(Refused(position, reject.reason, reject.message, local))
    return admitted
