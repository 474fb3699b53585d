"""The collectives of 2 and 4 ranks, which must return the same bits as one process with all shards."""

import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from command_line import processes
from ranks_in_threads import together
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from benchmarks.scale.traffic import Collective
from stream_learner.errors import RankLostError, UsageError
from stream_learner.learning.parallel import Parallel
from stream_learner.learning.ranks import SMALL_BYTES, Ranks, check_alike, failing_with_others, join_group

SHARDS = 8
TIMEOUT_S = 60.0
LARGE = SMALL_BYTES // 4 + 3  # not a multiple of the number of ranks
SHAPES = [(), (1,), (7,), (3, 5), (0,), (LARGE,)]


def rows(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Rows of all shards whose sum depends on the order of the additions."""
    generator = torch.Generator().manual_seed(len(shape))
    values = torch.randn(SHARDS, *shape, generator=generator, dtype=dtype)
    return values * 10.0 ** torch.randint(-6, 7, values.shape, generator=generator)


ARRAYS = [
    np.arange(SHARDS * 3, dtype=np.int64).reshape(SHARDS, 3),
    np.linspace(0, 1, SHARDS),
    np.arange(SHARDS) % 3 == 0,
    np.zeros((SHARDS, 0)),
    np.arange(SHARDS * 6, dtype=np.uint16).reshape(SHARDS, 3, 2)[:, :, 1],
]
OBJECTS: list[Any] = [None, "ἄλφα", 1.5, [1, {"a": [True]}], "x" * 10_000, {}, -(2**40), ""]
LONG: list[Any] = [None, "x" * SMALL_BYTES, *[None] * (SHARDS - 2)]


def results(parallel: Parallel) -> list[Any]:
    """Return what all collectives return, as bytes and JSON values."""
    mine = slice(parallel.local.start, parallel.local.stop)
    sums = [parallel.summed(rows(shape, dtype)[mine]) for shape in SHAPES for dtype in (torch.float32, torch.float64)]
    gathered = [parallel.gathered(array[mine]) for array in ARRAYS]
    return [
        *((str(total.dtype), total.shape, total.numpy().tobytes()) for total in sums),
        *((str(array.dtype), array.shape, array.tobytes()) for array in gathered),
        parallel.objects(OBJECTS[mine]),
        parallel.objects([None for _ in parallel.local]),
        parallel.objects(LONG[mine]),
    ]


def rank_of(rank: int, ranks: int, address: dict[str, str], pipe: Connection) -> None:
    torch.set_num_threads(1)
    os.environ.update(address)
    join_group(rank, ranks, rank, "cpu", None, TIMEOUT_S)
    parallel = Ranks(SHARDS, rank, ranks)
    pipe.send(results(parallel))
    pipe.send(parallel.take_traffic())
    if rank == 1:
        os._exit(0)
    try:
        while True:
            parallel.gathered(np.zeros(len(parallel.local)))
    except RankLostError as error:
        pipe.send(str(error))


def sent_bytes(rank: int, ranks: int) -> int:
    """Return the bytes that a rank sends to others during `results`."""
    sums = [
        Collective("summed", int(np.prod(shape)) * number_bytes, number_bytes).sent_bytes(SHARDS, ranks)
        for shape in SHAPES
        for number_bytes in (4, 8)
    ]
    gathered = [Collective("gathered", array[0].nbytes).sent_bytes(SHARDS, ranks) for array in ARRAYS]
    carried = SHARDS // ranks
    texts = [
        max(len(msgspec.msgpack.encode(values[i : i + carried])) for i in range(0, SHARDS, carried))
        for values in (OBJECTS, [None] * SHARDS)
    ]
    texts.append(len(msgspec.msgpack.encode(LONG[rank * carried : (rank + 1) * carried])))  # not padded
    return sum(sums + gathered) + (ranks - 1) * sum(8 + text for text in texts)


@pytest.fixture
def store() -> Iterator[dict[str, str]]:
    """A store that this process serves, as the agent of torchrun does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        timeout = timedelta(seconds=TIMEOUT_S)
        served = TCPStore("127.0.0.1", port, None, True, timeout, False, master_listen_fd=os.dup(listener.fileno()))
        yield {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        del served


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_return_the_bits_of_one_process_until_one_ends(ranks: int, store: dict[str, str]):
    pipes = [processes.Pipe(duplex=False) for _ in range(ranks)]
    children = [
        processes.Process(target=rank_of, args=(rank, ranks, store, sender)) for rank, (_, sender) in enumerate(pipes)
    ]
    for child, (_, sender) in zip(children, pipes, strict=True):
        child.start()
        sender.close()
    expected = results(Parallel(SHARDS))
    for rank, (receiver, _) in enumerate(pipes):
        assert receiver.recv() == expected
        traffic = receiver.recv()
        assert traffic.seconds > 0
        assert traffic.sent_bytes == sent_bytes(rank, ranks)
    for rank, (receiver, _) in enumerate(pipes):
        if rank != 1:
            assert receiver.recv().startswith("another rank of the run ended or does not answer (")
    for child in children:
        child.join()


def test_only_errors_of_the_collectives_are_losses():
    with pytest.raises(RankLostError, match=r"\(Connection closed\)"), failing_with_others():
        raise RuntimeError("Connection closed\nat gloo")
    with pytest.raises(ValueError, match="other"), failing_with_others():
        raise ValueError("other")


@pytest.mark.parametrize(
    ("device", "local", "message"),
    [
        ("auto", 2, "LOCAL_RANK = 2 has no CUDA device, because this host has 2; start at most 2 ranks"),
        ("cuda:1", 1, "learning.device = 'cuda:1' is one device for all ranks of a host; set it to 'cuda'"),
    ],
)
def test_each_rank_needs_a_gpu_of_its_own(device: str, local: int, message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match=message):
        join_group(local, 4, local, device, None, TIMEOUT_S)


def test_a_port_that_another_program_uses_is_refused(monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("", 0)) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(port))
        with pytest.raises(UsageError, match=f"another program uses MASTER_PORT = {port} on the host of rank 0"):
            join_group(0, 2, 0, "cpu", None, TIMEOUT_S)


def test_all_ranks_need_the_same_kind_of_device():
    def check(parallel: Parallel, cuda: list[bool]) -> bool:
        try:
            check_alike(parallel, cuda[parallel.rank])
        except UsageError:
            return False
        return True

    for cuda, alike in (([True, True], True), ([False, False], True), ([True, False], False)):
        assert together(SHARDS, 2, lambda parallel, cuda=cuda: check(parallel, cuda)) == [alike, alike]
