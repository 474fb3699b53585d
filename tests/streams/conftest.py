from collections.abc import Iterator

import pytest
from secured import KEY_PASSWORD, PASSWORD, PROTOCOLS, SCRAM_USERS, Secured, make_certificates, make_properties

from stream_learner.local.broker import Broker, free_port


@pytest.fixture(scope="session")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    make_certificates(folder)
    (folder / "password").write_text(PASSWORD + "\n")
    (folder / "key-password").write_text(KEY_PASSWORD + "\n")
    ports = {protocol: free_port() for protocol in PROTOCOLS}
    with Broker(folder / "kafka", properties=make_properties(folder, ports), format_options=SCRAM_USERS) as broker:
        yield Secured(broker, folder, ports)
