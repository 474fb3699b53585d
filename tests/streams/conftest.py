from collections.abc import Iterator
from typing import Any

import pytest
from reading import NewSource
from secured import KEY_PASSWORD, PASSWORD, PROTOCOLS, SCRAM_USERS, Secured, make_certificates, make_properties

from stream_learner.config import InputSettings, KafkaSettings
from stream_learner.contract.spans import Positions
from stream_learner.local.broker import Broker, free_port
from stream_learner.streams.source import Source


@pytest.fixture(scope="session")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    make_certificates(folder)
    (folder / "password").write_text(PASSWORD + "\n")
    (folder / "key-password").write_text(KEY_PASSWORD + "\n")
    ports = {protocol: free_port() for protocol in PROTOCOLS}
    with Broker(folder / "kafka", properties=make_properties(folder, ports), format_options=SCRAM_USERS) as broker:
        yield Secured(broker, folder, ports)


@pytest.fixture
def new_source(kafka: KafkaSettings) -> Iterator[NewSource]:
    """Opens sources that are closed after the test."""
    sources: list[Source] = []

    def new_source(topic: str, positions: Positions | None = None, **settings: Any) -> Source:
        chosen = InputSettings.model_validate({"topics": [topic]} | settings)
        sources.append(Source(kafka, chosen, positions or {}))
        return sources[-1]

    yield new_source
    for opened in sources:
        opened.close()
