"""Count the records of a run over all processes of its worker: committed counts plus counts of the running process."""

from collections import Counter

from stream_learner.config import Settings
from stream_learner.contract.manifest import decode_manifest
from stream_learner.contract.topics import Names
from stream_learner.contract.vocabulary import Reason, Split
from stream_learner.contract.window import decode_window
from stream_learner.local.scrape import Figures
from stream_learner.streams.journal import read_committed

Counts = Counter[str]
"""Counts by name: `records`, `learned`, `steps`, held-out samples by `Split`, rejected records by `Reason`, `releases`,
and `refused` candidates."""
Order = tuple[int, int]
"""Epoch and sequence of a checkpoint."""
METRICS = {
    "records": "records_in_total",
    "learned": "records_learned_total",
    "steps": "steps_total",
    "releases": "releases_total",
    "refused": "release_refusals_total",
}
HELD_OUT = (Split.VALIDATION, Split.TEST)


class Totals:
    """Counts of a run since a checkpoint, in one epoch."""

    def __init__(self, settings: Settings, since: Order):
        self._settings = settings
        self._since = since
        self._pid = 0
        self._before = Counts()
        self._most = Counts()

    def update(self, pid: int, figures: Figures) -> Counts:
        """Return the counts, given the figures of the process `pid`. The process must have recovered.

        A new process learns unsaved records again. The counts stay the same until it has caught up. Raises
        KafkaUnavailableError.
        """
        if pid != self._pid:
            recovered = int(figures.total("checkpoint_sequence") - figures.total("checkpoint_seconds_count"))
            epoch, sequence = self._since
            if recovered > sequence:
                self._before = committed(self._settings, self._since, (epoch, recovered))
            self._pid = pid
        self._most |= self._before + _of_process(figures)
        return self._most


def committed(settings: Settings, since: Order, until: Order) -> Counts:
    """Return the counts of the checkpoints after `since`, up to `until`. Raises KafkaUnavailableError."""
    counts = Counts()
    names = Names.under(settings.prefix)
    for record in read_committed(settings, names.metrics, wait=False):
        window = decode_window(record.value or b"")
        if since < window.order <= until:
            counts.update(records=window.records, learned=window.learned, steps=window.steps)
            counts.update({split: window.splits.get(split, 0) for split in HELD_OUT})
            counts.update(window.rejected)
    for record in read_committed(settings, names.history, wait=False):
        manifest = decode_manifest(record.value or b"")
        if since < manifest.order <= until and manifest.decision:
            counts["releases" if manifest.released else "refused"] += 1
    return counts


def rejected(counts: Counts) -> Counts:
    """Return the counts of rejected records, by reason."""
    return Counts({reason: counts[reason] for reason in Reason if counts[reason]})


def _of_process(figures: Figures) -> Counts:
    counts = Counts({name: int(figures.total(metric)) for name, metric in METRICS.items()})
    for split in HELD_OUT:
        counts[split] = int(figures.total("records_held_out_total", split=split))
    for reason in Reason:
        counts[reason] = int(figures.total("records_rejected_total", reason=reason))
    return counts
