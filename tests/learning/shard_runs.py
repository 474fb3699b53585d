"""Runs of a learner of four shards, on any number of ranks, with all that a stream may bring."""

import dataclasses
import hashlib
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from command_line import processes
from ranks_in_threads import together

from stream_learner.config import Settings
from stream_learner.contract import tensors
from stream_learner.contract.vocabulary import Reason, Split
from stream_learner.formats.record import Sample
from stream_learner.learning.learner import Learner
from stream_learner.learning.outcome import Outcome
from stream_learner.learning.parallel import Parallel
from stream_learner.learning.process import set_up_torch
from stream_learner.learning.ranks import Ranks, join_group
from stream_learner.learning.saved import Saved
from stream_learner.learning.state_dict import StateDict, join, split
from stream_learner.networks.tensors import as_arrays, as_tensors
from stream_learner.testing.small_run import small_settings

SHARDS = 4
Together = Callable[[int, int, Callable[[Parallel], Any]], list[Any]]
"""A function that returns what work returns on each rank: `ranks_in_threads.together`, or one of several processes."""
NAN, DARK = 10, 5  # batches: weights of a shard that are not numbers; all weights 0
DECIDE_EVERY = 2


def shard_settings(**sections: dict[str, Any]) -> Settings:
    run = {"id": "shards", "shards": SHARDS}
    return small_settings(**{"run": run, "batch": {"size": 16}, "memory": {"replay_size": 16}} | sections)


def batches(settings: Settings, count: int) -> list[list[list[Sample]]]:
    """Return batches, each with a list of samples for each shard: full, short or empty lists, and classes by shard.

    Classes arrive late. After two thirds, the images of classes are exchanged, which is a drift.
    """
    rng, number, found = np.random.default_rng(0), 0, []
    shape = settings.model.height, settings.model.width, settings.model.channels
    patterns = rng.integers(0, 200, (6, *shape))
    for b in range(count):
        found.append([])
        for shard in range(SHARDS):
            samples = []
            for _ in range((5, 2, 0, 6)[(b + shard * shard) % 4]):
                label = int(rng.integers(2)) if shard < 2 else int(rng.integers(3 if b < count // 3 else 6))
                shown = label if b < 2 * count // 3 else 5 - label
                part = (Split.TRAIN, Split.TRAIN, Split.TRAIN, Split.VALIDATION, Split.TEST)[rng.integers(5)]
                weight = 0.0 if b == DARK else (1.0, 0.5, 30.0, 2.0, 0.0)[number % 5]
                if b == NAN and shard == 3:
                    part, weight = Split.TRAIN, float("nan")
                samples.append(
                    Sample(
                        key=f"images/{shard}/{number}",
                        label=f"class {label}",
                        pixels_HWC=(patterns[shown] + rng.integers(0, 56, shape)).astype(np.uint8),
                        timestamp_ms=1_700_000_000_000 + 1000 * number,
                        weight=weight,
                        split=part,
                        group=number,
                    )
                )
                number += 1
            found[-1].append(samples)
    return found


@dataclass
class Kept:
    """Saved values: the learner's state, the states of all shards, their parts, the state of the last release."""

    state: bytes
    shards: list[bytes]
    parts: dict[str, bytes]
    released: bytes | None


def encoded(state: StateDict) -> bytes:
    found, document = split(state)
    return tensors.encode(as_arrays(found), document)


def decoded(state: bytes) -> StateDict:
    return join(as_tensors(tensors.decode(state)), tensors.decode_document(state))


def digest_of(outcome: Outcome) -> str:
    found = hashlib.sha256(repr((outcome.decision, outcome.rolled_back, outcome.candidate.labels)).encode())
    for tensor in (
        *outcome.candidate.parameters.values(),
        *outcome.candidate.evaluation.values(),
        outcome.candidate.logits,
    ):
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


class Run:
    """A learner of four shards, learning batches on some number of ranks. `seen` is what all parts showed.

    `events` names what happened: `undone` steps, a `drift`, training that `rolled back`.
    """

    def __init__(self, settings: Settings, count: int):
        self._settings = settings
        self._batches = batches(settings, count)
        self.kept: Kept | None = None
        self.seen: list[Any] = []
        self.events: set[str] = set()

    @property
    def everything(self) -> list[Any]:
        """Return the figures, and the saved values."""
        assert self.kept
        return [self.seen, *dataclasses.astuple(self.kept)]

    def on(self, ranks: int, start: int = 0, end: int | None = None, together: Together = together) -> "Run":
        """Learn batches `start` to `end` on this number of ranks, from what was kept."""
        results = together(SHARDS, ranks, partial(self._rank, list(range(len(self._batches)))[start:end]))
        states, shards, parts, released, seen = zip(*results, strict=True)
        assert len(set(states)) == 1, "the ranks keep different states"
        assert len({repr(one) for one in seen}) == 1, "the ranks saw different figures"
        self.kept = Kept(states[0], [*chain(*shards)], {k: v for part in parts for k, v in part.items()}, released[0])
        self.seen += seen[0]
        return self

    def _rank(
        self, numbers: Sequence[int], parallel: Parallel
    ) -> tuple[bytes, list[bytes], dict[str, bytes], bytes | None, list[Any]]:
        saved, released = None, self.kept and self.kept.released
        if self.kept:
            own = [decoded(self.kept.shards[shard]) for shard in parallel.local]
            saved = Saved(decoded(self.kept.state), self.kept.parts, decoded(released) if released else None, own)
        learner, seen = Learner(self._settings, saved, parallel), []
        for number in numbers:
            samples = [self._batches[number][shard] for shard in parallel.local]
            learned = learner.learn_shards(
                samples, [len(of_shard) + shard for shard, of_shard in zip(parallel.local, samples, strict=True)]
            )
            if any(refused.reason is Reason.NON_FINITE_STEP for refused in learned.refused):
                self.events.add("undone")
            if learned.drifts:
                self.events.add("drift")
            learned.refused = []  # of the local shards
            seen.append(repr(learned))
            if number % DECIDE_EVERY == DECIDE_EVERY - 1 and learner.labels:
                outcome = learner.decide()
                seen.append(digest_of(outcome))
                if outcome.rolled_back:
                    self.events.add("rolled back")
                if outcome.decision.released:
                    released = encoded(learner.state_dict())
        return (
            encoded(learner.state_dict()),
            [encoded(s) for s in learner.shard_states()],
            learner.parts,
            released,
            seen,
        )


def in_processes(shards: int, ranks: int, work: Callable[[Parallel], Any], device: str = "cpu") -> list[Any]:
    """Return what `work` returns on each rank. Each rank is a process, with a GPU of its own if `device` is cuda."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    pipes = [processes.Pipe() for _ in range(ranks)]
    for rank, (_, theirs) in enumerate(pipes):
        processes.Process(target=_process, args=(shards, rank, ranks, port, work, device, theirs), daemon=True).start()
        theirs.close()
    found = [ours.recv() for ours, _ in pipes]
    for ours, _ in pipes:
        ours.close()
    return found


def _process(
    shards: int, rank: int, ranks: int, port: int, work: Callable[[Parallel], Any], device: str, parent: Connection
) -> None:
    set_up_torch(shard_settings())
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    uses_gpu = join_group(rank, ranks, rank, device, None, 120.0)
    assert uses_gpu == (device == "cuda")
    parent.send(work(Ranks(shards, rank, ranks)))
    with suppress(EOFError):
        parent.recv()  # the other ranks may need this one until all have sent
    os._exit(0)
