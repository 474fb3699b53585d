"""The wait while a record format asks to read a record later."""

import threading

import pytest
from structlog.testing import capture_logs

from stream_learner.errors import DependencyError
from stream_learner.formats.record import Record, RetryLaterError, Sample
from stream_learner.run.outage import LONGEST_DELAY_S, Outage, patient

RECORD = Record("images", 0, 7, 0, None, b"", [])
ERROR = RetryLaterError("the schema registry does not answer")
WHY = "the record images[0] 7 cannot be read now: the schema registry does not answer"


class Time(threading.Event):
    """A stop event and its clock: time passes only in waits, and the stop comes at `stop_at`."""

    def __init__(self, stop_at: float = 1e9):
        super().__init__()
        self.now = 0.0
        self.stop_at = stop_at

    def wait(self, timeout: float | None = None) -> bool:
        self.now += timeout or 0.0
        if self.now >= self.stop_at:
            self.set()
        return self.is_set()


def outage(time: Time, give_up_s: float = 600.0) -> tuple[Outage, list[str | None]]:
    said: list[str | None] = []
    return Outage(give_up_s, time, said.append, lambda: time.now), said


def test_pauses_grow_and_the_loop_turns_meanwhile():
    time = Time()
    waits, said = outage(time)
    pauses = []
    for _ in range(10):
        began, turned = time.now, time.now
        for _ in waits.wait(RECORD, ERROR):
            assert time.now - turned < 1.001
            turned = time.now
        pauses.append(time.now - began)
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, *[LONGEST_DELAY_S] * 3])
    assert said == [WHY] * 10


def test_the_next_outage_begins_with_short_pauses():
    time = Time()
    waits, said = outage(time)
    for _ in range(5):
        assert [*waits.wait(RECORD, ERROR)]
    with capture_logs() as logs:
        waits.over()
        waits.over()
    assert [entry["waited_s"] for entry in logs] == [3.1]
    assert said[-1] is None
    began = time.now
    assert [*waits.wait(RECORD, ERROR)]
    assert time.now - began == pytest.approx(0.1)


def test_it_gives_up_after_one_last_try():
    time = Time()
    waits, _ = outage(time, give_up_s=5.0)
    while time.now < 4.999:
        assert [*waits.wait(RECORD, ERROR)]
    with pytest.raises(DependencyError) as caught:
        next(waits.wait(RECORD, ERROR))
    assert time.now == pytest.approx(5.0)
    assert str(caught.value).startswith(f"{WHY}. The record format has asked to wait for kafka.give_up_s = 5 s")


def test_a_stop_ends_the_wait():
    time = Time(stop_at=4.0)
    waits, _ = outage(time)
    while not time.is_set():
        for _ in waits.wait(RECORD, ERROR):
            assert not time.is_set()
    assert time.now == pytest.approx(4.1)  # the first step of the pause from 3.1 to 6.3 s


def test_a_patient_decoder_tries_until_it_succeeds():
    time = Time()
    tries: list[float] = []

    def decode(record: Record) -> Sample | None:
        assert record is RECORD
        tries.append(time.now)
        if len(tries) < 3:
            raise ERROR
        return None

    waits, said = outage(time)
    assert patient(decode, waits)(RECORD) is None
    assert tries == pytest.approx([0.0, 0.1, 0.3])
    assert said == [WHY, WHY, None]
