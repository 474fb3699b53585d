"""Acknowledges the release that a follower uses."""

import re
import socket
import threading
from datetime import UTC, datetime

import structlog

from stream_learner.config import AnySettings
from stream_learner.config.fields import KAFKA_NAME
from stream_learner.contract.acks import Ack
from stream_learner.contract.documents import time_text
from stream_learner.contract.manifest import encode
from stream_learner.contract.topics import Names
from stream_learner.errors import StreamLearnerError, UsageError
from stream_learner.program import PROGRAM
from stream_learner.streams.writing import write

log = structlog.get_logger()

NAME = re.compile(r"[a-zA-Z0-9._-]{1,200}")
RETRY_S = 10.0
CLOSE_S = 2.0


class Acknowledger:
    """Writes to the acks topic which release is in use. A thread writes, so that Kafka never delays the follower."""

    def __init__(self, settings: AnySettings, name: str):
        """Begin. Nothing is written before `use`. Raises UsageError when the name is not valid."""
        if not NAME.fullmatch(name):
            raise UsageError(f"the name of a follower {KAFKA_NAME}")
        self._settings = settings
        self._name = name
        self._changed = threading.Condition()
        self._wanted: Ack | None = None
        self._written: Ack | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"acknowledgements of {name}", daemon=True)
        self._thread.start()

    def use(self, order: tuple[int, int] | None) -> None:
        """Acknowledge the release with this epoch and sequence, or that none is in use. Return at once."""
        with self._changed:
            before = self._wanted and (self._wanted.epoch, self._wanted.sequence)
            if order == before:
                return
            self._wanted = self._ack(*order) if order else None
            self._changed.notify_all()

    def close(self) -> None:
        """Write that no release is in use any more. Wait for this only briefly."""
        self.use(None)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(CLOSE_S)

    def _ack(self, epoch: int, sequence: int) -> Ack:
        return Ack(
            program=PROGRAM,
            run_id=self._settings.run.id,
            name=self._name,
            host=socket.gethostname(),
            epoch=epoch,
            sequence=sequence,
            since=time_text(datetime.now(UTC)),
        )

    def _run(self) -> None:
        topic, key = Names.under(self._settings.prefix).acks, self._name.encode()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._wanted is not self._written)
                wanted, is_closed = self._wanted, self._closed
                if wanted is self._written:
                    return
            try:
                write(self._settings, topic, key, encode(wanted) if wanted else None)
                self._written = wanted
            except StreamLearnerError as error:
                log.warning("the release in use is not acknowledged", name=self._name, why=str(error))
                if is_closed:
                    return
                with self._changed:
                    self._changed.wait_for(lambda last=wanted: self._closed or self._wanted is not last, RETRY_S)
