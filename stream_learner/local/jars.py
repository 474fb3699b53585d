"""Download Kafka's jars from Maven Central once, keep them in a cache, and check them at every use.

`kafka-jars.sha256` holds the checksums. `python -m stream_learner.local.jars` downloads the jars again and prints the
new content of this file.
"""

import hashlib
import os
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from stream_learner.errors import KafkaUnavailableError
from stream_learner.local import extra

# The second artifact is a logger, which Kafka's own dependencies lack. Without it, Kafka prints no
# message when it fails.
ARTIFACTS = (("org.apache.kafka", "kafka_2.13", "4.1.0"), ("org.slf4j", "slf4j-simple", "1.7.36"))
SUMS = Path(__file__).with_name("kafka-jars.sha256")
# Each attempt makes about 200 requests, and any of them may fail.
ATTEMPTS = 3


def class_path() -> str:
    """Return the class path of Kafka's jars. Download them if needed. Raises KafkaUnavailableError, UsageError."""
    folder = cache_folder()
    if not folder.is_dir():
        _download(folder)
    if trouble := mismatch(folder):
        raise KafkaUnavailableError(
            f"Kafka's jars in {folder} cannot be trusted: {trouble}; delete that folder to download them again"
        )
    return os.pathsep.join(str(jar) for jar in sorted(folder.glob("*.jar")))


def cache_folder() -> Path:
    """Return the folder of the jars. Each list of checksums has a folder of its own."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "stream-learner" / f"kafka-{_sha256(SUMS)[:16]}"


def mismatch(folder: Path) -> str | None:
    """Describe how the jars in a folder differ from the list of checksums. Return None if they do not differ."""
    expected = {name: digest for digest, name in (line.split() for line in SUMS.read_text().splitlines())}
    found = {jar.name: _sha256(jar) for jar in folder.glob("*.jar")}
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} is not in the list of checksums"
        if found[name] != expected[name]:
            return f"the sha256 of {name} differs from the list of checksums"
    return None


def _download(folder: Path) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KafkaUnavailableError(
            f"the folder for Kafka's jars cannot be created: {error}; set XDG_CACHE_HOME to a folder that you may "
            "write to"
        ) from None
    with TemporaryDirectory(dir=folder.parent, prefix="download-") as scratch:
        fresh = Path(scratch) / "jars"
        fresh.mkdir()
        for jar in _resolve(Path(scratch)):
            jar.rename(fresh / jar.name)
        if trouble := mismatch(fresh):
            raise KafkaUnavailableError(
                f"Kafka's downloaded jars cannot be trusted: {trouble}; check the proxies between this machine and "
                "Maven Central"
            )
        # The folder is moved as a whole, so that an incomplete download is never mistaken for a complete one. The move
        # fails if another process was faster and has put the same jars there.
        with suppress(OSError):
            fresh.rename(folder)


def _resolve(scratch: Path) -> list[Path]:
    """Download the artifacts and all their run-time dependencies."""
    failure = None
    for attempt in range(ATTEMPTS):
        try:
            # A folder for each attempt, because jgo mistakes an incomplete file for a complete one.
            return _resolve_once(scratch / f"attempt-{attempt}")
        # jgo raises RuntimeError. The library `requests`, which jgo uses, raises a subclass of OSError.
        except (OSError, RuntimeError) as error:
            failure = error
    raise KafkaUnavailableError(
        f"Kafka's jars cannot be downloaded from Maven Central ({failure}); check the network and try again"
    ) from failure


def _resolve_once(repository: Path) -> list[Path]:
    with extra("demo"):
        from jgo.maven import MavenContext
        from jgo.parse import Coordinate

    maven = MavenContext(repo_cache=repository)
    wanted = [maven.create_dependency(Coordinate(*names, scope="compile")) for names in ARTIFACTS]
    direct, transitive = maven.resolver.resolve(wanted)
    at_run_time = [found for found in transitive if found.scope in ("compile", "runtime")]
    return [dependency.artifact.resolve() for dependency in [*direct, *at_run_time]]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    with TemporaryDirectory() as scratch:
        for jar in sorted(_resolve(Path(scratch)), key=lambda jar: jar.name):
            sys.stdout.write(f"{_sha256(jar)}  {jar.name}\n")
