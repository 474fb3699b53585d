import pytest

from stream_learner.monitoring.health import WHY_NOT_READY, Health, Phase


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.RECOVERING])
def test_a_worker_that_recovers_is_live_but_neither_started_nor_ready(phase: Phase):
    clock = Clock()
    health = Health(live_timeout_s=10, clock=clock)
    health.enter(phase)
    clock.now += 3600  # recovery has time-outs of its own
    health.heard("metadata")
    assert health.why_not_live() is None
    assert health.why_not_started() == health.why_not_ready() == WHY_NOT_READY[phase]


@pytest.mark.parametrize("phase", [Phase.STANDBY, Phase.LEARNING, Phase.WAITING, Phase.STOPPING])
def test_a_started_worker_is_live_as_long_as_it_beats(phase: Phase):
    clock = Clock()
    health = Health(live_timeout_s=10, clock=clock)
    health.enter(phase)
    assert health.why_not_started() is None
    clock.now += 10
    assert health.why_not_live() is None
    clock.now += 1
    assert health.why_not_live() == "the loop made no turn for 11 s (monitoring.live_timeout_s = 10)"
    health.beat()
    assert health.why_not_live() is None


def test_only_a_worker_that_learns_and_beats_is_ready():
    clock = Clock()
    health = Health(live_timeout_s=10, clock=clock)
    for phase in Phase:
        health.enter(phase)
        assert (health.why_not_ready() is None) == (phase is Phase.LEARNING)
    health.enter(Phase.LEARNING)
    health.wait_for("http://user:secret@registry/\n does not answer")
    assert health.why_not_ready() == "http://***@registry/\\u000a does not answer"
    assert health.why_not_live() is None
    health.wait_for(None)
    assert health.why_not_ready() is None
    clock.now += 11
    assert "no turn" in (health.why_not_ready() or "")


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.STARTING])
def test_nobody_is_ready_while_kafka_does_not_answer(phase: Phase):
    clock = Clock()
    health = Health(live_timeout_s=1000, request_timeout_s=30, clock=clock)
    health.enter(phase)
    clock.now += 31
    assert health.silence_s == 31
    assert health.why_not_ready() == "Kafka has not answered for 31 s (kafka.request_timeout_s = 30)"
    assert health.why_not_live() is None
    health.heard("metadata")
    assert health.why_not_ready() == WHY_NOT_READY[phase]


def test_nobody_is_ready_while_kafka_answers_anything_but_fetches():
    clock = Clock()
    health = Health(live_timeout_s=1000, request_timeout_s=30, clock=clock)
    health.enter(Phase.LEARNING)
    health.unanswered = "images[3]", 31.0
    assert health.why_not_ready() == (
        "Kafka has not answered a fetch of images[3] for 31 s (kafka.request_timeout_s = 30)"
    )
    assert (health.silence_s, health.cut_off_s) == (31, 0)
    clock.now += 5
    health.heard("metadata")
    assert health.cut_off_s == 5  # no other partition was answered either
    health.heard("fetch")
    assert health.cut_off_s == 0
    health.unanswered = "", 0.0
    assert health.why_not_ready() is None


def test_before_anybody_listens_for_answers_none_are_missed():
    clock = Clock()
    health = Health(live_timeout_s=10, request_timeout_s=30, clock=clock)
    clock.now += 3600
    assert health.why_not_ready() == WHY_NOT_READY[Phase.STARTING]
