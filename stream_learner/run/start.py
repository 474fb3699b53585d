"""Start a worker: check its settings, then check the topics and the store while torch is imported."""

import gc
import importlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, closing

import structlog

from stream_learner.checkpoints.store import Store, check_location
from stream_learner.config import Settings
from stream_learner.contract import keys
from stream_learner.contract.topics import Names
from stream_learner.contract.window import COMBINED
from stream_learner.errors import ExitCode, UsageError
from stream_learner.formats.decoder import Decoder
from stream_learner.monitoring import logs
from stream_learner.monitoring.health import Health
from stream_learner.monitoring.metrics import Metrics
from stream_learner.monitoring.monitor import Monitor
from stream_learner.monitoring.series import RunRegistry
from stream_learner.monitoring.server import serve
from stream_learner.program import VERSION
from stream_learner.publishing.ownership import first_look
from stream_learner.publishing.recover import Recovery
from stream_learner.run.gang import Rank, check_ranks
from stream_learner.run.process import keep_freed_memory
from stream_learner.streams.clients import Clients
from stream_learner.streams.connection import client_config

log = structlog.get_logger()

POLL_S = 0.05
# Number of new objects after which the garbage collector looks for cycles. A record makes several objects that live
# until it is learned, and hardly any cycles. With Python's default of 700, a worker with a small network spends 6 % of
# its time in the collector.
NEW_OBJECTS = 10_000
# Pixels per side that are enough for every built-in network outside torchvision.
ENOUGH_PIXELS = 9
FROM_TORCHVISION = ("resnet18", "resnet50")


def check(settings: Settings) -> None:
    """Raise UsageError for every fault that the settings and local files alone reveal.

    Import torch only if `needs_torch` returns true.
    """
    _check_without_torch(settings)
    if needs_torch(settings):
        _check_with_torch(settings)


def needs_torch(settings: Settings) -> bool:
    """Return whether a learner must be built to check the settings.

    A learner is needed if the settings name code, a library or a file that may not fit.
    """
    model, learning = settings.model, settings.learning
    names = [model.name, model.head, learning.strategy, *learning.augment, *settings.weights.policies]
    return (
        any(":" in name for name in names)
        or model.name in FROM_TORCHVISION
        or (model.name != "mlp" and min(model.height, model.width) < ENOUGH_PIXELS)
        or model.weights is not None
        or learning.device not in ("auto", "cpu")
        or not learning.average_decay
    )


def _check_without_torch(settings: Settings) -> None:
    if settings.security.verifier and not settings.security.signer:
        raise UsageError(
            "security.verify_key_files is set, but security.signing_key_file is not, so the next start would refuse "
            "the records of this worker. Set security.signing_key_file; only readers do not need it"
        )
    Decoder.from_settings(settings)
    client_config(settings.kafka)
    check_location(settings.checkpoint.store)


def _check_with_torch(settings: Settings) -> None:
    from stream_learner.learning.learner import Learner
    from stream_learner.learning.process import set_up_torch

    set_up_torch(settings)  # before torch starts threads: they inherit that denormal numbers count as 0
    Learner(settings)
    gc.collect()  # otherwise `gc.freeze` would keep a large network in memory


def run(
    settings: Settings,
    health: Health,
    stop: threading.Event,
    end_process: Callable[[ExitCode], None],
    *,
    fresh: bool = False,
    accept_rejects: bool = False,
) -> None:
    """Start a worker and run it until `stop` is set. Raises the errors of `worker.run`."""
    # 1. Check the settings, and serve the health pages.
    gc.disable()  # imports make a million objects but no garbage; the collector would take a seventh of the import time
    rank = Rank.from_environment()
    check_ranks(rank.count, settings.run.shards)
    _check_without_torch(settings)
    several = rank.index if rank.count > 1 else None
    logs.configure(settings.log.level, settings.log.format, several)
    keep_freed_memory()
    registry, names = RunRegistry(settings.run.id, several), Names.under(settings.prefix)
    port = settings.monitoring.port and settings.monitoring.port + rank.local  # 0 is any free port
    serve(settings.monitoring.host, port, registry, health, settings.run.id)
    metrics = Metrics(
        registry,
        VERSION,
        settings.input.topics,
        (names.checkpoints, names.history),
        [*settings.weights.policies, COMBINED],
    )
    monitor = Monitor(health, metrics)
    # 2. Import torch on a separate thread.
    importing = ThreadPoolExecutor(1, "import").submit(importlib.import_module, "stream_learner.run.worker")
    if needs_torch(settings):
        _check_with_torch(settings)
    # 3. Check the store, the topics (`Clients` checks them before it connects) and the newest checkpoint.
    store = Store(settings.checkpoint.store)
    store.try_out(keys.trials(settings.run.id))
    with ExitStack() as opened:
        clients = recovery = None
        if rank.index == 0:
            clients = opened.enter_context(closing(Clients(settings, health.heard)))
            clients.election.check_members()
            carried = range(settings.run.shards // rank.count)
            recovery = Recovery(settings, store, clients.cluster, carried, fresh, metrics.foreign_records)
            first_look(settings, recovery.look)
        # Up to here nothing in Kafka is changed. Joining the group is the first change, and fencing the second.
        # 4. Join the group of the election while torch is imported. With several ranks, rank 0 first waits for the
        #    others: it must not be elected before they are there.
        while not importing.done() and not stop.is_set():
            wait([importing], POLL_S)
            # A take-over disturbs the active worker, so it waits until everything is checked.
            if clients and rank.count == 1 and settings.run.on_conflict != "take_over":
                clients.election.poll()
        if stop.is_set():
            return
        # 5. Wait to be elected, fence other workers, then learn.
        from stream_learner.run import worker

        gc.freeze()  # later collections need not look at the imported objects
        gc.set_threshold(NEW_OBJECTS)
        gc.enable()
        lead = worker.Lead(clients, recovery) if clients and recovery else None
        worker.run(settings, store, lead, rank, monitor, stop, end_process, accept_rejects=accept_rejects)
    log.info("stopped")
