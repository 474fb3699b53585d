from collections.abc import Callable, Iterator
from typing import Any

import pytest
from secured import KEY_PASSWORD, PASSWORD, PROTOCOLS, SCRAM_USERS, Secured, make_certificates, make_properties

from stream_learner.config import KafkaSettings, Settings
from stream_learner.local.broker import Broker, free_port


@pytest.fixture
def new_settings(kafka: KafkaSettings, unique_name: str) -> Callable[..., Settings]:
    """Settings of a run with a name of its own; other sections as keyword arguments."""

    def new_settings(**sections: Any) -> Settings:
        defaults = {"run": {"id": unique_name}, "input": {"topics": [f"{unique_name}.input"]}, "kafka": kafka}
        return Settings.model_validate(defaults | sections)

    return new_settings


@pytest.fixture(scope="session")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    make_certificates(folder)
    (folder / "password").write_text(PASSWORD + "\n")
    (folder / "key-password").write_text(KEY_PASSWORD + "\n")
    ports = {protocol: free_port() for protocol in PROTOCOLS}
    with Broker(folder / "kafka", properties=make_properties(folder, ports), format_options=SCRAM_USERS) as broker:
        yield Secured(broker, folder, ports)
