"""Releases in MLflow's registry: one version each, whatever is lost. The real server is in `make conformance`."""

from collections.abc import Iterator

import msgspec
import pytest
from mlflow_server import Registry, serving, tags_of
from released import release

from stream_learner.contract.pins import Chosen
from stream_learner.errors import DependencyError, StateError, UsageError
from stream_learner.follow.mlflow import MLflow, RegistryUnavailableError
from stream_learner.follow.releases import Release

REQUESTS = 10
"""Of a first release, at least."""


@pytest.fixture
def registry() -> Iterator[Registry]:
    with serving(Registry()) as server:
        yield server


def client(registry: Registry, **environment: str) -> MLflow:
    return MLflow(registry.url, "digits", "digits", environment)


def later(sequence: int, *before: int) -> Release:
    """A release whose manifest lists earlier ones."""
    made = release(sequence)
    earlier = [release(one).described.as_earlier() for one in before]
    made.manifest = msgspec.structs.replace(made.manifest, earlier=earlier)
    return made


def sequences(registry: Registry) -> list[str]:
    return [tags_of(version)["stream_learner.sequence"] for version in registry.versions]


def test_a_release_is_one_version(registry: Registry) -> None:
    mlflow = client(registry)
    assert mlflow.put(release(7)) == mlflow.put(release(7)) == client(registry).put(release(7)) == "models:/digits/1"
    assert mlflow.put(release(7, value=1)) == "models:/digits/2"
    assert mlflow.put(release(7, epoch=2)) == "models:/digits/3"
    assert len(registry.runs) == len(registry.versions) == 3
    assert registry.champion == "3"
    assert mlflow.put(release(7)) == "models:/digits/1"
    assert registry.champion == "1"
    described, (version, *_) = release(7).described, registry.versions
    assert tags_of(version) == {
        "stream_learner.epoch": "1",
        "stream_learner.sequence": "7",
        "stream_learner.digest": described.object.digest,
        "stream_learner.object": f"file:///objects/{described.object.key}",
        "stream_learner.created_at": described.created_at,
        "stream_learner.network": "mlp",
        "stream_learner.program": "stream-learner 0.1.0",
        "stream_learner.offsets": "{}",
    }
    assert version["source"] == "kafka://digits.weights/1/7"
    run = registry.run(version)
    assert run["metrics"] == {"classes": 3, "test_samples": 0, "validation_samples": 0}
    assert run["status"] == "FINISHED"


def test_earlier_releases_are_caught_up(registry: Registry) -> None:
    mlflow = client(registry)
    mlflow.put(release(2))
    mlflow.put(later(9, 1, 2, 5))
    assert sequences(registry) == ["2", "1", "5", "9"]
    assert registry.champion == "4"
    before = len(registry.requests)
    mlflow.put(later(9, 1, 2, 5))
    assert registry.requests[before:] == ["model-versions/search", "registered-models/alias"]
    assert tags_of(registry.versions[1]).keys() & {"stream_learner.offsets"} == set()


def chosen(sequence: int) -> Chosen:
    return Chosen(1, sequence, release(sequence).described.object.digest)


def withdrawn(registry: Registry) -> list[str]:
    """Return the sequences of the releases whose version is marked."""
    marked = [tags_of(version) for version in registry.versions if version.get("description")]
    assert all(tags["stream_learner.withdrawn"] == "true" for tags in marked)
    return [tags["stream_learner.sequence"] for tags in marked]


def test_a_withdrawn_release_is_marked(registry: Registry) -> None:
    mlflow = client(registry)
    mlflow.withdraw({chosen(1), chosen(3)})
    assert registry.versions == []
    mlflow.put(later(5, 1, 2, 3))
    assert withdrawn(registry) == []
    mlflow.withdraw({chosen(1), chosen(3)})
    assert sequences(registry) == ["1", "2", "3", "5"]
    assert withdrawn(registry) == ["1", "3"]
    # The alias leaves a withdrawn version, and no other one.
    assert registry.champion == "4"
    mlflow.withdraw({chosen(1), chosen(3), chosen(5)})
    assert registry.champion is None
    mlflow.put(release(2))
    client(registry).withdraw({chosen(1), chosen(3), chosen(5)})
    assert registry.champion == "2"
    assert withdrawn(registry) == ["1", "3", "5"]
    before = len(registry.requests)
    mlflow.withdraw({chosen(1), chosen(3), chosen(5)})
    assert len(registry.requests) == before
    # A description that a person wrote stays. Another process may have moved the alias after the version was marked.
    registry.versions[1]["description"] = "a person's"
    client(registry).withdraw({chosen(2)})
    assert registry.versions[1]["description"] == "a person's"
    registry.champion = "2"
    client(registry).withdraw({chosen(2)})
    assert registry.champion is None
    tags = [tag["key"] for tag in registry.versions[1]["tags"]]
    assert tags.count("stream_learner.withdrawn") == 1


def test_any_answer_to_a_withdrawal_may_be_lost(registry: Registry) -> None:
    for lost in range(6):
        sequence = lost + 1
        client(registry).put(release(sequence))
        registry.lost = lost
        try:
            client(registry).withdraw({chosen(sequence)})
        except RegistryUnavailableError:
            registry.lost = None
            client(registry).withdraw({chosen(sequence)})
        else:
            assert lost == 5  # search, get, alias, description, tag
        assert registry.champion is None
        assert len(withdrawn(registry)) == sequence
        assert len(registry.versions[-1]["tags"]) == len({*tags_of(registry.versions[-1])})


def test_any_answer_may_be_lost(registry: Registry) -> None:
    """The connection ends after a request is carried out, as if one of the two had been killed."""
    lost = sequence = 0
    for sequence in range(1, 20):
        registry.lost = sequence - 1
        registry.models.clear()
        registry.experiments.clear()
        try:
            client(registry).put(release(sequence))
        except RegistryUnavailableError:
            lost += 1
            registry.lost = None
            client(registry).put(release(sequence))
        assert sequences(registry) == [str(one) for one in range(1, sequence + 1)]
        assert len(registry.runs) == sequence
        assert registry.runs[-1]["status"] == "FINISHED"
        assert registry.champion == registry.versions[-1]["version"]
    assert REQUESTS <= lost < sequence


def test_a_second_version_is_deleted(registry: Registry) -> None:
    client(registry).put(release(7))
    registry.versions.append(registry.versions[0] | {"version": "10"})
    registry.versions.append(registry.versions[0] | {"version": "9"})
    assert client(registry).put(release(7)) == "models:/digits/1"
    assert [version["version"] for version in registry.versions] == ["1"]


def test_a_version_that_a_person_deleted(registry: Registry) -> None:
    mlflow = client(registry)
    mlflow.put(release(7))
    registry.versions.clear()
    mlflow.put(release(7))
    assert sequences(registry) == ["7"]


def test_refusals(registry: Registry) -> None:
    for status, error in ((500, RegistryUnavailableError), (429, RegistryUnavailableError), (400, StateError)):
        registry.status = status
        with pytest.raises(error, match=f"answered GET model-versions/search with status {status}") as raised:
            client(registry).put(release(7))
        assert "\x1b" not in str(raised.value)
    registry.status = 401
    with pytest.raises(DependencyError, match="MLFLOW_TRACKING_USERNAME"):
        client(registry).put(release(7))
    url = f"http://user:sesame@127.0.0.1:{registry.server_port}"
    for mlflow in (
        client(registry, MLFLOW_TRACKING_USERNAME="user", MLFLOW_TRACKING_PASSWORD="sesame"),
        client(registry, MLFLOW_TRACKING_TOKEN="token"),
        MLflow(url, "digits", "digits", {}),
    ):
        with pytest.raises(DependencyError) as raised:
            mlflow.put(release(7))
        assert "sesame" not in str(raised.value)
    assert registry.credentials == {None, "Basic dXNlcjpzZXNhbWU=", "Bearer token"}
    registry.status = 200
    with pytest.raises(UsageError, match="the URL of MLflow must begin with http") as raised:
        MLflow("ftp://sesame", "digits", "digits", {})
    assert "sesame" not in str(raised.value)
