"""A user's own record format, which hangs at a marked record."""

import threading

from stream_learner.formats.plain import Plain
from stream_learner.formats.record import Fields, Record

MARK = b"hang"


class Hanging(Plain):
    def read(self, record: Record) -> Fields:
        if record.key == MARK:
            threading.Event().wait()
        return super().read(record)
