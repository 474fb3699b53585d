"""The shards of a learner over several processes, called ranks, by torch.distributed."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta

import msgspec
import numpy as np
import torch
from torch import Tensor, distributed
from torch.distributed import DistNetworkError, TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.nn import functional

from stream_learner.errors import RankLostError, UsageError
from stream_learner.learning.parallel import Json, Parallel, Traffic, tree_sum

# By measurement, one collective that sends all rows is faster up to about this size.
SMALL_BYTES = 1024 * 1024
WAIT_S = 1.0
SERVED_BY_TORCHRUN = "TORCHELASTIC_USE_AGENT_STORE"


class Ranks(Parallel):
    """The shards of this rank, and the collectives with the other ranks.

    Gloo sends arrays and tensors of the CPU, NCCL sends tensors of CUDA. All methods raise RankLostError if another
    rank ends, or does not take part within the time-out of the group. Use them on one thread only.
    """

    def __init__(self, shards: int, rank: int, ranks: int):
        """Take consecutive shards for a rank of the process group, which `join_group` made."""
        super().__init__(shards)
        self.rank = rank
        self.local = range(rank * shards // ranks, (rank + 1) * shards // ranks)
        self._ranks = ranks
        self._traffic = Traffic()
        self.waits = False
        """Whether this rank is in a collective, where it may wait for other ranks. Any thread may ask."""

    def gathered(self, rows: np.ndarray) -> np.ndarray:
        return self._of_all_ranks(rows).reshape(self.shards, *rows.shape[1:])

    def objects(self, local: Sequence[Json]) -> list[Json]:
        text = np.frombuffer(msgspec.msgpack.encode(list(local)), np.uint8)
        lengths: list[int] = self._of_all_ranks(np.array([len(text)]))[:, 0].tolist()
        if self._ranks * max(lengths) <= SMALL_BYTES:
            padded = np.zeros(max(lengths), np.uint8)
            padded[: len(text)] = text
            texts = [text[:length] for text, length in zip(self._of_all_ranks(padded), lengths, strict=True)]
        else:  # one long text, for example of a large dead letter, must not take its length for each rank
            texts = [self._from_rank(rank, text, length) for rank, length in enumerate(lengths)]
        return [value for text in texts for value in msgspec.msgpack.decode(text.data)]

    def summed(self, rows: Tensor) -> Tensor:
        total = tree_sum(rows)
        flat = total.reshape(-1)
        if self._ranks * flat.nbytes <= SMALL_BYTES:
            return tree_sum(self._gathered(flat).view(self._ranks, *total.shape))
        # Each rank adds one slice of the sums of all ranks, in the order of `tree_sum`.
        padded = functional.pad(flat, (0, -len(flat) % self._ranks))
        slices = torch.empty_like(padded)
        with self._collective(slices.nbytes // self._ranks):
            distributed.all_to_all_single(slices, padded)
        return self._gathered(tree_sum(slices.view(self._ranks, -1)))[: len(flat)].view(total.shape)

    def take_traffic(self) -> Traffic:
        traffic, self._traffic = self._traffic, Traffic()
        return traffic

    def _of_all_ranks(self, mine: np.ndarray) -> np.ndarray:
        """Return the arrays [ranks, ...] of all ranks, which have the same dtype and shape."""
        sent = torch.from_numpy(np.array(mine, order="C").reshape(-1).view(np.uint8))
        return self._gathered(sent).numpy().view(mine.dtype).reshape(self._ranks, *mine.shape)

    def _from_rank(self, rank: int, mine: np.ndarray, length: int) -> np.ndarray:
        """Return the bytes of one rank, which are `length` bytes."""
        sent = np.array(mine) if rank == self.rank else np.empty(length, np.uint8)
        with self._collective(length if rank == self.rank else 0):
            distributed.broadcast(torch.from_numpy(sent), rank)
        return sent

    def _gathered(self, mine: Tensor) -> Tensor:
        """Return the vectors [N] of all ranks as one vector [ranks * N]."""
        gathered = mine.new_empty(self._ranks * len(mine))
        with self._collective(mine.nbytes):
            distributed.all_gather_into_tensor(gathered, mine)
        return gathered

    @contextmanager
    def _collective(self, bytes_to_each: int) -> Iterator[None]:
        """Count a collective in which this rank sends this number of bytes to each other rank.

        Only the CPU's collectives have their whole time counted: those of CUDA end later than the call.
        """
        began, before = time.monotonic(), self._traffic
        self.waits = True
        try:
            with failing_with_others():
                yield
        finally:
            self.waits = False
        sent_bytes = (self._ranks - 1) * bytes_to_each
        self._traffic = Traffic(before.seconds + time.monotonic() - began, before.sent_bytes + sent_bytes)


def join_group(rank: int, ranks: int, local: int, device: str, listener: int | None, timeout_s: float) -> bool:
    """Join the process group of all ranks, which every collective of `Ranks` uses, and wait for the other ranks.

    The environment variables MASTER_ADDR and MASTER_PORT are the address of the store where the ranks meet. Rank 0
    serves it, unless torchrun does. `listener` is the file descriptor of a socket that listens there, if this process
    inherited one. `local` is the index of this rank on its host, and of its CUDA device if `device`
    (`learning.device`) is not the CPU. Return whether this rank uses CUDA. The other ranks may come `timeout_s` later,
    and each collective may take this long. Raises UsageError if the host has no such device, or if another program uses
    the port. Raises RankLostError.
    """
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda:
        _check_device(device, local)
        torch.cuda.set_device(local)
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    serves = rank == 0 and os.environ.get(SERVED_BY_TORCHRUN) != "True"
    backend, timeout = "cpu:gloo,cuda:nccl" if cuda else "gloo", timedelta(seconds=timeout_s)
    with failing_with_others():
        try:
            store = TCPStore(host, port, ranks, serves, timeout, master_listen_fd=listener)
        except DistNetworkError as error:
            if serves and "EADDRINUSE" in str(error):
                raise UsageError(
                    f"another program uses MASTER_PORT = {port} on the host of rank 0; set a free port on all ranks"
                ) from None
            raise
        distributed.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=timeout)
    return cuda


def _check_device(device: str, local: int) -> None:
    """Raise UsageError unless this rank can have a CUDA device of its own."""
    if device not in ("auto", "cuda"):
        raise UsageError(
            f"learning.device = {device!r} is one device for all ranks of a host; set it to 'cuda', so that each rank "
            "takes the device of its LOCAL_RANK"
        )
    if local >= (devices := torch.cuda.device_count()):
        raise UsageError(
            f"LOCAL_RANK = {local} has no CUDA device, because this host has {devices}; start at most {devices} ranks "
            "on it, or set learning.device to cpu"
        )


def check_alike(parallel: Parallel, cuda: bool) -> None:
    """Raise UsageError on all ranks if some use CUDA and others do not: their collectives would never meet."""
    found = parallel.gathered(np.full(len(parallel.local), cuda))
    if found.any() and not found.all():
        raise UsageError(
            "some ranks of the run have a CUDA device and others have none; give each rank one, or set learning.device "
            "to cpu"
        )


class Board:
    """Messages through the store at which the ranks met. Any thread may use them beside collectives.

    All methods raise RankLostError if the store is gone.
    """

    def __init__(self, name: str):
        """Connect to MASTER_ADDR and MASTER_PORT.

        `name` is the same on all ranks. No other start of the run has it, because the store may outlive the processes.
        """
        self._name = name
        # A connection of its own: a wait on the shared one would block others.
        self._store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), wait_for_workers=False)

    def post(self, key: str, text: str) -> None:
        """Post a message."""
        with failing_with_others():
            self._store.set(f"{self._name}/{key}", text)

    def read(self, keys: Sequence[str]) -> list[bytes]:
        """Return the messages with these keys. Wait for them, however long: heartbeats notice a rank that is lost."""
        names = [f"{self._name}/{key}" for key in keys]
        with failing_with_others():
            while not self._store.check(names):
                with suppress(distributed.DistStoreError):  # a time-out
                    self._store.wait(names, timedelta(seconds=WAIT_S))
            return [self._store.get(name) for name in names]

    def remove(self, keys: Sequence[str]) -> None:
        """Remove messages, if they exist."""
        with failing_with_others():
            for key in keys:
                self._store.delete_key(f"{self._name}/{key}")


@contextmanager
def failing_with_others() -> Iterator[None]:
    """Raise RankLostError instead of the errors of torch.distributed."""
    try:
        yield
    except RuntimeError as error:
        raise RankLostError(
            f"another rank of the run ended or does not answer ({str(error).splitlines()[0]}). Its log has the cause. "
            "Start all ranks again: they continue from the last save"
        ) from None
