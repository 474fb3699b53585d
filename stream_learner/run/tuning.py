"""Find the settings of `[learning]` that learn fastest on this machine, with the run's model and records."""

import json
import math
import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import cycle
from typing import NamedTuple

from stream_learner import networks
from stream_learner.config import MIB, Settings
from stream_learner.errors import UsageError
from stream_learner.formats.decoder import Decoder
from stream_learner.formats.record import Sample
from stream_learner.learning.learner import Learner
from stream_learner.learning.parallel import Parallel
from stream_learner.learning.placement import place
from stream_learner.learning.process import set_up_torch
from stream_learner.run.batches import OpenBatch, batches
from stream_learner.run.outage import Outage
from stream_learner.run.process import keep_freed_memory
from stream_learner.streams.cluster import Cluster
from stream_learner.streams.source import Source

ROUNDS = 7
# Batches that are read, and then learned repeatedly.
BATCHES = 20
MAX_BYTES = 256 * MIB
# Batches before the first round. They fill the replay memory, and torch chooses its kernels.
WARM_UP = 5


class Choice(NamedTuple):
    """Settings of `[learning]` that affect only the speed and the rounding of the results."""

    threads: int
    precision: str
    channels_last: bool

    def changes(self, now: "Choice") -> dict[str, int | str | bool]:
        """Return the settings that differ from `now`."""
        return {name: value for name, value in self._asdict().items() if value != getattr(now, name)}


class Ratio(NamedTuple):
    """Speed of a choice relative to another: median of the rounds, and lower and upper quartile."""

    median: float
    low: float
    high: float

    @property
    def wins(self) -> bool:
        """Whether the gain is larger than the spread, both as factors."""
        return self.median > self.high / self.low

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


class Comparison(NamedTuple):
    """Records per second of several choices in each round. In a round, all choices are measured in turn.

    `now` is the choice that stays if no other wins.
    """

    now: Choice
    rates: dict[Choice, list[float]]

    def ratio(self, choice: Choice, other: Choice) -> Ratio:
        ratios = [rate / base for rate, base in zip(self.rates[choice], self.rates[other], strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return Ratio(median, low, high)

    @property
    def winner(self) -> Choice:
        """The choice with the fewest changes that the fastest choice does not beat by more than the spread."""
        fastest = max(self.rates, key=lambda choice: self.ratio(choice, self.now).median)
        equal = [choice for choice in self.rates if not self.ratio(fastest, choice).wins]
        return min(equal, key=lambda choice: (len(choice.changes(self.now)), -self.ratio(choice, self.now).median))


def tune(
    settings: Settings, cluster: Cluster, seconds: float, on_progress: Callable[[int, int], None]
) -> list[Comparison]:
    """Compare precisions and memory layouts, then numbers of threads. Learn for about `seconds` in all.

    Each turn learns at least one batch, so a network with slow steps takes longer. The records are the newest ones of
    the input topics. Nothing is published or committed. `on_progress(turns, total)` is called repeatedly.

    Raises UsageError when the topics hold no training sample or the settings do not fit. Raises TopicsError,
    InputError, DependencyError, KafkaUnavailableError.
    """
    samples = _read(settings, cluster)
    keep_freed_memory()
    set_up_torch(settings)
    placement = place(settings.learning, networks.factory(settings.model.name))
    now = Choice(placement.arithmetic("").threads, "bf16" if placement.autocast else "fp32", placement.channels_last)
    placements = [Choice(now.threads, precision, last) for precision in ("fp32", "bf16") for last in (False, True)]
    # With several shards, each rank has one thread: see `set_up_torch`.
    counts = {now.threads} if settings.run.shards > 1 else thread_counts(len(os.sched_getaffinity(0))) | {now.threads}
    turns = ROUNDS * (len(placements) + len(counts))

    def compare(now: Choice, choices: list[Choice], done: int) -> Comparison:
        trials = {choice: _Trial(settings, choice, samples) for choice in choices}
        rates: dict[Choice, list[float]] = {choice: [] for choice in choices}
        for number in range(ROUNDS):
            for choice in choices if number % 2 else reversed(choices):
                rates[choice].append(trials[choice].rate(seconds / turns))
                done += 1
                on_progress(done, turns)
        return Comparison(now, rates)

    first = compare(now, placements, 0)
    threads = [first.winner._replace(threads=count) for count in sorted(counts)]
    return [first, compare(first.winner, threads, ROUNDS * len(placements))]


def thread_counts(cores: int) -> set[int]:
    """Return the powers of two up to `cores`, and `cores`."""
    return {2**power for power in range(cores.bit_length())} | {cores}


def fragment(comparisons: Sequence[Comparison]) -> str:
    """Return the settings that won as TOML, with their ratios as comments."""
    lines = [
        f"{name} = {json.dumps(value)}  # {c.ratio(c.winner, c.now)} times the speed"
        for c in comparisons
        for name, value in c.winner.changes(c.now).items()
    ]
    return "\n".join(
        ["[learning]", *(lines or ["# No setting is faster than the present one by more than the spread."]), ""]
    )


class _Trial:
    """A learner with other settings. It learns the same batches again and again."""

    def __init__(self, settings: Settings, choice: Choice, samples: list[list[Sample]]):
        changed = settings.learning.model_copy(update=choice._asdict())
        self._settings = settings.model_copy(update={"learning": changed})
        set_up_torch(self._settings)
        self._learner = Learner(self._settings)
        self._batches = cycle(samples)
        for _ in range(WARM_UP):
            self._learner.learn(next(self._batches))

    def rate(self, seconds: float) -> float:
        """Learn for at least `seconds` and at least one batch. Return records per second."""
        set_up_torch(self._settings)
        records, began = 0, time.perf_counter()
        while True:
            batch = next(self._batches)
            self._learner.learn(batch)
            records += len(batch)
            if (elapsed := time.perf_counter() - began) >= seconds:
                return records / elapsed


def _read(settings: Settings, cluster: Cluster) -> list[list[Sample]]:
    """Return the samples of batches of the newest input records. Raises UsageError if there is no training sample."""
    first, end = cluster.input_bounds()
    topics = settings.input.topics
    # Twice the training samples, because other records are between them.
    each = math.ceil(2 * BATCHES * settings.batch.size / sum(len(end[topic]) for topic in topics))
    begin = {t: {p: max(first[t][p], offset - each) for p, offset in end[t].items()} for t in topics}
    found: list[list[Sample]] = []
    nbytes, deadline = 0, time.monotonic() + settings.kafka.request_timeout_s
    stop = threading.Event()
    outage = Outage(settings.kafka.give_up_s, stop)
    with closing(Source(settings.kafka, settings.input, begin)) as source:
        shard = OpenBatch(source, Decoder.from_settings(settings), begin, settings.batch, stop, outage=outage)
        for closed in batches([shard], Parallel(), settings.batch, stop):
            for batch in closed:
                if batch.training:
                    found.append(batch.samples)
                    nbytes += batch.bytes
            waited = not closed and (found or time.monotonic() > deadline)
            if waited or len(found) == BATCHES or nbytes >= MAX_BYTES:
                break
    if not found:
        raise UsageError(
            f"the newest records of {', '.join(topics)} hold no training sample, so there is nothing to measure with; "
            "send some records first (`stream-learner feed`)"
        )
    return found
