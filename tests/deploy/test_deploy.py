"""The files of deploy/ and docker-compose.yml: valid, complete, and in agreement with one another and the program."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import BaseModel
from ruamel.yaml import YAML
from typer.testing import CliRunner

from stream_learner.cli import app
from stream_learner.config import MonitoringSettings, Settings, load

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE_FILE = ROOT / "docker-compose.yml"
DOCKERFILE = DEPLOY / "Dockerfile"
EXAMPLE = (DEPLOY / "worker.example.toml").read_text()
UNSET = re.compile(r"^#(?=\w)", re.MULTILINE)
"""Prefix of a setting that is unset by default. Prose has a space after its #."""


def read_yaml(path: Path):
    return YAML(typ="safe").load(path)


@pytest.fixture(scope="module")
def compose() -> dict:
    return read_yaml(COMPOSE_FILE)


def sections() -> dict[str, type[BaseModel]]:
    annotations = {name: field.annotation for name, field in Settings.model_fields.items()}
    return {name: kind for name, kind in annotations.items() if isinstance(kind, type) and issubclass(kind, BaseModel)}


def load_text(tmp_path: Path, text: str) -> Settings:
    key, password, path = tmp_path / "signing.pem", tmp_path / "kafka-password", tmp_path / "worker.toml"
    key.write_bytes(Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    password.write_text("secret")
    for file in (key, password):  # read with the settings
        text = text.replace(f"/run/secrets/{file.name}", str(file))
    path.write_text(text)
    return load(path)


def run(tool: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([Path(sys.executable).with_name(tool), *arguments], capture_output=True, text=True)


def test_the_example_names_every_setting_and_says_what_it_means():
    named = tomllib.loads(UNSET.sub("", EXAMPLE))
    assert {name: set(values) for name, values in named.items()} == {
        name: set(section.model_fields) for name, section in sections().items()
    }
    unwrapped = EXAMPLE.replace("\n# ", " ")
    for section in sections().values():
        for name, field in section.model_fields.items():
            meaning = " ".join((field.description or "").split())
            assert re.search(rf" {re.escape(meaning)}\n#?{name} = ", unwrapped), (
                f"deploy/worker.example.toml lacks, above {name}: {meaning}"
            )


def test_the_example_holds_the_defaults(tmp_path):
    example = load_text(tmp_path, EXAMPLE).model_dump()
    required = '[run]\nid = "digits"\n[input]\ntopics = ["images"]\n'
    assert example == load_text(tmp_path, required).model_dump()


def test_each_unset_line_of_the_example_loads_alone_and_with_the_others(tmp_path):
    unset = [match.start() for match in UNSET.finditer(EXAMPLE)]
    assert unset
    for start in unset:
        if not EXAMPLE.startswith("#sasl_", start):  # which need each other
            load_text(tmp_path, EXAMPLE[:start] + EXAMPLE[start + 1 :])
    with_sasl = EXAMPLE.replace('"PLAINTEXT"', '"SASL_SSL"')
    load_text(tmp_path, with_sasl.replace("#sasl_", "sasl_"))
    load_text(tmp_path, UNSET.sub("", with_sasl))


def test_the_dockerfile_passes_hadolint():
    result = run("hadolint", DOCKERFILE)
    assert result.returncode == 0, result.stdout


def test_the_image_asks_the_health_page_at_the_default_port():
    port = MonitoringSettings().port
    text = DOCKERFILE.read_text()
    assert f"EXPOSE {port}\n" in text
    assert f"HTTPConnection('127.0.0.1', {port}, " in text


def test_the_image_copies_only_what_dockerignore_lets_through():
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    assert {source for sources in copied for source in sources.split()} == allowed


def test_a_cpu_wheel_replaces_torch_and_all_of_cuda_in_the_lock_file(tmp_path):
    (script,) = re.findall(r"sed -i (-E '.+?') worker.txt", DOCKERFILE.read_text())
    lock = tmp_path / "worker.txt"
    lock.write_text((ROOT / "locks" / "worker.txt").read_text())
    before = pinned(lock)
    subprocess.run(f"sed -i {script} {lock}", shell=True, check=True)
    gone = before - pinned(lock)
    assert gone == {name for name in before if re.match(r"torch$|triton$|nvidia-|cuda-", name)}
    assert "torch" in gone
    # Each package that is left still has its digests, and there are no digests without a package.
    assert re.fullmatch(
        r"([\w.-]+==[^\n]+ \\\n(    --hash=sha256:\w{64} \\\n)*    --hash=sha256:\w{64}\n)+", lock.read_text()
    )


def pinned(lock: Path) -> set[str]:
    return set(re.findall(r"^([\w.-]+)==", lock.read_text(), re.MULTILINE))


def test_compose_follows_its_schema():
    result = run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE_FILE)
    assert result.returncode == 0, result.stdout


def test_compose_names_only_services_volumes_and_files_that_exist(compose):
    services = compose["services"]
    for service in services.values():
        for other, dependency in service.get("depends_on", {}).items():
            assert other in services
            if dependency["condition"] == "service_healthy":
                assert "test" in services[other]["healthcheck"]
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (ROOT / source).is_file() if source.startswith(".") else source in compose["volumes"]


def test_compose_publishes_on_loopback_only(compose):
    published = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_compose_and_the_workers_settings_agree(compose, monkeypatch):
    services = compose["services"]
    worker = services["worker"]
    for name, value in worker["environment"].items():
        monkeypatch.setenv(name, value)
    settings = load(DEPLOY / "worker.compose.toml")

    assert settings.monitoring.host == "0.0.0.0"
    assert worker["ports"] == [f"127.0.0.1:{settings.monitoring.port}:{settings.monitoring.port}"]
    prometheus = read_yaml(DEPLOY / "prometheus.yml")
    assert [f"./deploy/{name}:/etc/prometheus/{name}:ro" for name in ("prometheus.yml", *prometheus["rule_files"])] == [
        volume for volume in services["prometheus"]["volumes"] if volume.startswith(".")
    ]
    (scrape,) = prometheus["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": [f"worker:{settings.monitoring.port}"]}]

    assert (
        f"INTERNAL://{settings.kafka.bootstrap_servers}"
        in services["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    )
    assert int(worker["stop_grace_period"].removesuffix("s")) > settings.run.stop_deadline_s

    mounts = dict(volume.split(":")[:2] for volume in worker["volumes"])
    assert settings.checkpoint.store.startswith(mounts["worker-data"])
    assert mounts["worker-data"] in DOCKERFILE.read_text()
    # The image's default command and the one-shot service read the file that is mounted.
    assert f'CMD ["run", "{mounts["./deploy/worker.compose.toml"]}"]' in DOCKERFILE.read_text()
    assert mounts["./deploy/worker.compose.toml"] in services["topics"]["command"]


def test_the_commands_of_image_and_compose_are_the_programs(compose):
    (run_worker,) = re.findall(r"^CMD (.+)$", DOCKERFILE.read_text(), re.MULTILINE)
    for command in (json.loads(run_worker), compose["services"]["topics"]["command"]):
        # --help runs nothing, but an unknown command or option before it is still an error.
        assert CliRunner().invoke(app, [*command, "--help"]).exit_code == 0
