from contextlib import closing

from stream_learner.local.scrape import scrape
from stream_learner.monitoring.health import Health
from stream_learner.monitoring.metrics import Metrics
from stream_learner.monitoring.series import RunRegistry
from stream_learner.monitoring.server import serve


def test_figures_are_found_whatever_the_run():
    registry = RunRegistry("digits")
    Metrics(registry, "1.2.3").begin({"images": {0: 5}})
    with closing(serve("127.0.0.1", 0, registry, Health(live_timeout_s=10), "digits")) as served:
        figures = scrape(served.port)
    assert figures
    assert figures.get("checkpoint_sequence") == 0
    assert figures.positions() == {("images", 0): 5}
