from stream_learner.monitoring.health import Health


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_worker_that_recovers_is_live_but_neither_started_nor_ready():
    clock = Clock()
    health = Health(live_timeout_s=10, clock=clock)
    clock.now += 3600  # recovery has a time-out of its own
    assert health.why_not_live() is None
    assert health.why_not_started() == health.why_not_ready() == "starting: the run is being recovered"


def test_a_started_worker_is_live_as_long_as_it_beats():
    clock = Clock()
    health = Health(live_timeout_s=10, clock=clock)
    health.started()
    assert health.why_not_started() is None
    clock.now += 10
    assert health.why_not_live() is None
    clock.now += 1
    assert health.why_not_live() == "the loop made no turn for 11 s (monitoring.live_timeout_s = 10)"
    health.beat()
    assert health.why_not_live() is None


def test_readiness_is_the_workers_word_unless_its_loop_hangs():
    clock = Clock()
    health = Health(live_timeout_s=10, clock=clock)
    health.started()
    assert health.why_not_ready()
    health.ready(True)
    assert health.why_not_ready() is None
    health.ready(False, "the object store is failing")
    assert health.why_not_ready() == "the object store is failing"
    health.ready(True)
    clock.now += 11
    assert "no turn" in (health.why_not_ready() or "")
