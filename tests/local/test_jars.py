import os
from pathlib import Path

import pytest

from stream_learner.errors import KafkaUnavailableError
from stream_learner.local import jars


@pytest.fixture
def real_jars() -> list[Path]:
    return [Path(jar) for jar in jars.class_path().split(os.pathsep)]


@pytest.fixture
def cache(real_jars: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of our own, with the real jars."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = jars.cache_folder()
    cache.mkdir(parents=True)
    for jar in real_jars:
        (cache / jar.name).symlink_to(jar)
    return cache


def test_the_class_path_is_what_the_list_of_sums_names(cache: Path):
    listed = [line.split()[1] for line in jars.SUMS.read_text().splitlines()]
    assert jars.class_path() == os.pathsep.join(str(cache / name) for name in sorted(listed))
    assert "kafka_2.13-4.1.0.jar" in listed


def test_a_changed_jar_is_refused(cache: Path):
    (cache / "kafka-clients-4.1.0.jar").unlink()
    (cache / "kafka-clients-4.1.0.jar").write_bytes(b"something else")
    with pytest.raises(
        KafkaUnavailableError, match=r"the sha256 of kafka-clients-4.1.0.jar differs .*delete that folder"
    ):
        jars.class_path()


def test_a_jar_that_is_not_listed_is_refused(cache: Path):
    (cache / "more.jar").write_bytes(b"something")
    with pytest.raises(KafkaUnavailableError, match=r"more.jar is not in the list"):
        jars.class_path()


def test_a_missing_jar_is_noticed(cache: Path):
    (cache / "kafka-clients-4.1.0.jar").unlink()
    with pytest.raises(KafkaUnavailableError, match=r"kafka-clients-4.1.0.jar is missing"):
        jars.class_path()


class Repository:
    """Stands in for Maven Central: hands out copies of the jars after `failures` broken connections."""

    def __init__(self, real_jars: list[Path], failures: int, spoilt: str = ""):
        self.real_jars, self.failures, self.spoilt = real_jars, failures, spoilt

    def __call__(self, folder: Path) -> list[Path]:
        folder.mkdir()
        if self.failures:
            self.failures -= 1
            (folder / "half.jar").write_bytes(b"half")
            raise ConnectionError("connection reset")
        for jar in self.real_jars:
            (folder / jar.name).write_bytes(b"" if jar.name == self.spoilt else jar.read_bytes())
        return list(folder.iterdir())


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "stream-learner"


def test_a_download_is_tried_again(real_jars, empty_cache, monkeypatch):
    monkeypatch.setattr(jars, "_resolve_once", Repository(real_jars, failures=jars.ATTEMPTS - 1))
    assert len(jars.class_path().split(os.pathsep)) == len(real_jars)
    assert list(empty_cache.iterdir()) == [jars.cache_folder()]


def test_a_download_that_fails_leaves_nothing_behind(real_jars, empty_cache, monkeypatch):
    monkeypatch.setattr(jars, "_resolve_once", Repository(real_jars, failures=jars.ATTEMPTS))
    with pytest.raises(KafkaUnavailableError, match="connection reset"):
        jars.class_path()
    assert list(empty_cache.iterdir()) == []


def test_a_download_that_differs_is_refused_and_not_kept(real_jars, empty_cache, monkeypatch):
    monkeypatch.setattr(jars, "_resolve_once", Repository(real_jars, failures=0, spoilt="lz4-java-1.8.0.jar"))
    with pytest.raises(KafkaUnavailableError, match=r"the sha256 of lz4-java-1.8.0.jar differs"):
        jars.class_path()
    assert list(empty_cache.iterdir()) == []
