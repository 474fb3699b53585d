"""Commands that succeed, on a real broker."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from command_line import HOSTILE, MODULE, Run
from jsonschema import Draft202012Validator
from kafka.structs import TopicPartition
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from stream_learner.config import KafkaSettings
from stream_learner.errors import ExitCode
from stream_learner.local.broker import HOST, free_port
from stream_learner.streams.connection import ask, reader

ROOT = Path(__file__).parents[2]


COMMANDS = """
import json, sys
from stream_learner import cli
for arguments in json.loads(sys.stdin.read()):
    sys.argv = ["stream-learner", *arguments]
    cli.main()
    assert "torch" not in sys.modules, arguments
"""


def test_torch_is_not_loaded_where_it_is_not_needed(ready: Run):
    commands = [[name, str(ready.file)] for name in ("config", "topics", "status")]
    commands += [["--help"], ["feed", "--limit", "1", str(ready.file)]]
    done = subprocess.run([sys.executable, "-c", COMMANDS], input=json.dumps(commands), capture_output=True, text=True)
    assert done.returncode == ExitCode.OK, done.stderr
    assert "all topics are correct" in done.stdout
    assert "fed 1 record" in done.stdout


def test_config_prints_the_effective_settings(run: Run):
    environment = {"STREAM_LEARNER_BATCH__SIZE": "5", "STREAM_LEARNER_KAFKA__CLIENT_ID": "environment"}
    shown = json.loads(run.output("config", sets="kafka.client_id=set", environment=environment))
    assert shown["run"]["id"] == run.id
    assert shown["model"]["name"] == "mlp"
    assert shown["batch"]["size"] == 5
    assert shown["kafka"]["client_id"] == "set"
    assert shown["release"]["max_drop"] == 0.02


def test_config_prints_text_from_outside_escaped(run: Run):
    shown = run.output("config", "--set", f"kafka.client_id={HOSTILE}")
    assert not {*"\x1b\x9b\u202e\u2028"} & set(shown)
    assert json.loads(shown)["kafka"]["client_id"] == HOSTILE


def test_what_the_terminals_encoding_lacks_is_escaped(run: Run):
    name = "caf\u00e9 \u732b \U0001f408"
    command = [*MODULE, "config", str(run.file), "--set", f"kafka.client_id={name}"]
    done = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == ExitCode.OK, done.stderr
    assert json.loads(done.stdout.decode("ascii"))["kafka"]["client_id"] == name


def test_config_redacts_secrets(run: Run):
    sasl = "kafka.security_protocol=SASL_SSL kafka.sasl_mechanism=PLAIN kafka.sasl_username=learner "
    secret = run.folder / "secret"
    secret.write_text("sesame")
    for sets, environment in [
        ("kafka.sasl_password=sesame", {}),
        ("", {"STREAM_LEARNER_KAFKA__SASL_PASSWORD": "sesame"}),
        (f"kafka.sasl_password_file={secret} kafka.ssl_key_password_file={secret}", {}),
    ]:
        shown = run.output("config", sets=sasl + sets, environment=environment)
        assert json.loads(shown)["kafka"]["sasl_username"] == "learner"
        assert "sesame" not in shown


def test_config_prints_a_schema_that_accepts_the_example(run: Run):
    schema = json.loads(run.output("config", "--schema"))
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    validator.validate(tomllib.loads((ROOT / "deploy" / "worker.example.toml").read_text()))
    assert not validator.is_valid({"run": {"id": "a", "name": "b"}, "input": {"topics": ["a"]}})


def test_topics_are_created_once_then_checked(run: Run):
    made = run.output("topics", "--input-partitions", 1).splitlines()
    outputs = "checkpoints", "history", "weights", "metrics", "dead-letters", "predictions", "acks", "pins"
    assert sorted(made[:-1]) == sorted(f"created {run.id}.{name}" for name in (*outputs, "input"))
    assert made[-1] == "all topics are correct"
    for options in ([], ["--check"], ["--input-partitions", 1]):
        assert run.output("topics", *options) == "all topics are correct\n"


def test_status_before_the_first_checkpoint(ready: Run):
    ready.output("feed", "--limit", 10)
    shown = ready.output("status")
    assert shown.startswith("no checkpoint yet\n")
    lags = re.findall(r"│ [01] +│ 0 +│ (\d+) +│", shown)
    assert sum(map(int, lags)) == 10
    found = json.loads(ready.output("status", "--json"))
    assert found["manifest"] is None
    assert found["window"] is None
    assert found["positions"] == {ready.input: {"0": 0, "1": 0}}
    assert sum(found["lag"][ready.input].values()) == 10


def ends(shown: str) -> dict[int, int]:
    """End offset of each partition, as a feed reports it."""
    return {int(partition): int(offset) for partition, offset in re.findall(r"(\d+): (\d+)", shown)}


def test_feed_tells_what_it_did_and_where_the_topic_ends(ready: Run):
    shown = ready.output("feed", "--limit", 30)
    assert shown.startswith("fed 30 records; ")
    before = ends(shown)
    assert sum(before.values()) == 30
    shown = ready.output("feed", "--limit", 5, "--rate", 50, "--order", "drifting", "--seed", 7)
    assert shown.startswith("fed 5 records; ")
    assert sum(ends(shown).values()) == 35
    assert all(ends(shown)[partition] >= offset for partition, offset in before.items())


def test_feed_makes_passes_over_a_folder_in_an_order(run: Run, new_topic: Callable[..., str], kafka: KafkaSettings):
    for label in ("cat", "dog"):
        (run.folder / "images" / label).mkdir(parents=True)
        for number in range(3):
            Image.new("L", (8, 8), number).save(run.folder / "images" / label / f"{number}.png")
    (run.folder / "images" / "notes.txt").touch()
    topic = new_topic()
    feed = ["feed", "--data", "images", "--topic", topic, "--order", "by_class"]
    shown = run.output(*feed, "--epochs", 2)
    assert ends(shown) == {0: 12}
    assert shown.startswith("fed 12 records (1 other file skipped); ")
    assert ends(run.output(*feed, "--epochs", 3, "--limit", 4)) == {0: 16}
    assert labels(kafka, topic, 16) == [*(["cat"] * 3 + ["dog"] * 3) * 2, "cat", "cat", "cat", "dog"]


def test_feed_shows_its_progress_and_a_folders_name_as_text(run: Run, new_topic: Callable[..., str]):
    folder = run.folder / "[bold]photos\x1b[2J"
    (folder / "cat").mkdir(parents=True)
    Image.new("L", (8, 8)).save(folder / "cat" / "0.png")
    done = run("feed", "--data", folder, "--topic", new_topic(), environment={"FORCE_COLOR": "1", "COLUMNS": "200"})
    assert done.code == ExitCode.OK
    assert "feeding [bold]photos\\u001b[2J" in done.err
    assert " 1/1" in done.err


def labels(kafka: KafkaSettings, topic: str, count: int) -> list[str]:
    """Labels of the first records of a topic's only partition."""
    place = TopicPartition(topic, 0)
    found: list[str] = []
    with reader(kafka) as consumer:
        consumer.assign([place])
        consumer.seek(place, 0)
        while len(found) < count:
            for messages in consumer.poll(timeout_ms=1000).values():
                found += [dict(message.headers)["label"].decode() for message in messages]
    return found


def test_kafka_runs_until_ctrl_c(tmp_path: Path):
    port = free_port()
    command = [*MODULE, "kafka", "--port", str(port), "--folder", str(tmp_path / "kafka")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert f"Kafka is at {HOST}:{port}" in process.stdout.readline()
        ask(KafkaSettings(bootstrap_servers=f"{HOST}:{port}"), "asking", lambda admin: admin.describe_cluster())
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == ExitCode.OK
    assert err == ""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOST, port))


def test_a_worker_that_is_alive(ready: Run):
    ready.output("feed", "--limit", 300)
    sets = ["log.level=info", "log.format=json", "release.every_records=200", "checkpoint.every_s=1"]
    command = [*MODULE, "run", str(ready.file), *(word for setting in sets for word in ("--set", setting))]
    with subprocess.Popen(command, cwd=ready.folder, stderr=subprocess.PIPE, text=True) as worker:
        assert worker.stderr is not None
        log: list[dict[str, Any]] = []
        for line in worker.stderr:  # one object a line, or this fails
            log.append(json.loads(line))
            if log[-1]["event"] == "checkpoint" and log[-1].get("released"):
                (port,) = (event["port"] for event in log if event["event"] == "monitoring")
                look_at(port)
                worker.send_signal(signal.SIGTERM)
    # A thread that outlives the last message would keep the process for its own time-out.
    assert time.time() - datetime.fromisoformat(log[-1]["timestamp"]).timestamp() < 20
    assert log[-1]["event"] == "stopped"
    assert worker.returncode == ExitCode.OK
    assert all({"event", "level", "logger", "timestamp"} <= event.keys() for event in log)
    found = json.loads(ready.output("status", "--json"))
    positions, lag = found["manifest"]["positions"][ready.input], found["lag"][ready.input]
    assert sum(positions.values()) + sum(lag.values()) == 300
    assert sum(positions.values()) >= 200
    shown = ready.output("status")
    for pattern in (r"checkpoint \d+ of 20", r"release \d+ of 20", r"test accuracy \d", r"last window: \d+ records"):
        assert re.search(pattern, shown), shown


def look_at(port: int) -> None:
    for page in ("startupz", "livez", "readyz"):
        with urlopen(f"http://{HOST}:{port}/{page}") as answer:
            assert (answer.status, answer.read()) == (200, b"ok\n")
    with urlopen(f"http://{HOST}:{port}/metrics") as answer:
        families = {family.name: family for family in text_string_to_metric_families(answer.read().decode())}
    (records,) = families["stream_learner_records_in"].samples
    assert records.value >= 200
    (releases,) = families["stream_learner_releases"].samples
    assert releases.value >= 1
