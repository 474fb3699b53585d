"""The command line: its help, its exit codes, one line for each failure, and every command on a real broker."""

import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer.main
from command_line import Done, stream_learner
from jsonschema import Draft202012Validator
from kafka.structs import TopicPartition
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from terminal import Terminal

from stream_learner import __version__
from stream_learner.cli import app
from stream_learner.config import KafkaSettings
from stream_learner.errors import ExitCode
from stream_learner.local.broker import HOST, free_port
from stream_learner.streams.connection import ask, reader

ROOT = Path(__file__).parents[2]
MODULE = [sys.executable, "-m", "stream_learner"]
SCRIPT = [str(Path(sys.executable).with_name("stream-learner"))]
COMMANDS = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
WIDE = {"COLUMNS": "500"}  # nothing is wrapped
NOWHERE = "kafka.bootstrap_servers=127.0.0.1:1"
IMPATIENT = "kafka.request_timeout_s=0.5"


class Run:
    """A settings file, and commands that get it."""

    def __init__(self, folder: Path, run_id: str, kafka: KafkaSettings):
        self.folder = folder
        self.id = run_id
        self.input = f"{run_id}.input"
        self.file = folder / "worker.toml"
        self.file.write_text(f"""
            run.id = "{run_id}"
            input.topics = ["{self.input}"]
            kafka.bootstrap_servers = "{kafka.bootstrap_servers}"
            model = {{name = "mlp", height = 8, width = 8, channels = 1}}
            monitoring.port = 0
            log.level = "error"
        """)

    def __call__(self, command: str, *options: object, sets: str = "", **more: Any) -> Done:
        """`sets` are settings, separated by spaces."""
        overrides = [word for setting in sets.split() for word in ("--set", setting)]
        return stream_learner(command, self.file, *overrides, *options, folder=self.folder, **more)

    def output(self, command: str, *options: object, **more: Any) -> str:
        """What a command that succeeds writes."""
        done = self(command, *options, **more)
        assert done.code == ExitCode.OK, done.err
        assert done.err == ""
        return done.out


@pytest.fixture
def run(kafka: KafkaSettings, unique_name: str, tmp_path: Path) -> Run:
    """A run that has no topics yet."""
    return Run(tmp_path, unique_name, kafka)


@pytest.fixture
def ready(run: Run) -> Run:
    """A run that has its topics, two partitions of input among them."""
    run.output("topics", "--input-partitions", 2)
    return run


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which something listens."""
    with socket.create_server((HOST, 0)) as listener:
        yield listener.getsockname()[1]


def failure(done: Done, code: ExitCode) -> str:
    """The one line that a failed command says."""
    assert done.code == code, done.err
    assert done.err.startswith("error: "), done.err
    assert done.err.count("\n") == 1, done.err
    assert done.err.endswith("\n")
    return done.err.removeprefix("error: ").strip()


# Help


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_every_option(name: str, tmp_path: Path):
    done = stream_learner(name, "--help", folder=tmp_path, environment=WIDE)
    assert done.code == ExitCode.OK
    assert COMMANDS[name].help.splitlines()[0] in done.out
    for parameter in COMMANDS[name].params:
        assert parameter.help, f"{name} {parameter.name} has no help"
        shown = parameter.metavar if parameter.param_type_name == "argument" else parameter.opts[0]
        assert re.search(rf"{shown} .*{re.escape(parameter.help)}", done.out)


def test_help_lists_every_command_and_debug(tmp_path: Path):
    done = stream_learner("--help", folder=tmp_path, environment=WIDE)
    for name, command in COMMANDS.items():
        assert re.search(rf"{name} +{re.escape(command.help.splitlines()[0])}", done.out)
    assert "--debug" in done.out
    alone = stream_learner(folder=tmp_path, environment=WIDE)
    assert alone.out.strip() == done.out.strip()
    failure(alone, ExitCode.USAGE)


@pytest.mark.parametrize("arguments", [["config", "--help"], ["config", "missing.toml"]])
def test_the_module_is_the_script(arguments: list[str]):
    module, script = (
        subprocess.run([*command, *arguments], capture_output=True, text=True) for command in (MODULE, SCRIPT)
    )
    assert (module.returncode, module.stdout, module.stderr) == (script.returncode, script.stdout, script.stderr)


def test_the_version_is_the_packages(tmp_path: Path):
    assert stream_learner("--version", folder=tmp_path) == (ExitCode.OK, f"stream-learner {__version__}\n", "")


# Failures


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("nope", "No such command 'nope'"),
        ("config --nope", "No such option: --nope"),
        ("config a.toml b.toml", r"unexpected extra argument"),
        ("feed --limit many", "Invalid value for '--limit'"),
        ("feed --limit 0", "Invalid value for '--limit'"),
        ("feed --rate -1", "Invalid value for '--rate'"),
        ("feed --order sorted", "'sorted' is not one of 'shuffled', 'by_class', 'drifting'"),
        ("kafka --port 70000", "Invalid value for '--port'"),
        ("demo --summary missing/summary.json", "Invalid value for '--summary'"),
        ("demo --resume", "no demo to resume"),
        ("config --set", "requires an argument"),
        ("config missing.toml", r"there is no settings file missing\.toml"),
        ("config", r"run\.id is required; input\.topics is required"),
        ("config --set x", "is not of the form"),
        ("config --set run.id=a --set input.topics=a", r"input\.topics: "),
        ("config --set run.id=a/b --set input.topics=['a']", r"run\.id: "),
        ("config --set run.id=a --set input.topics=['a'] --set kafka.client=x", r"did you mean client_id\?"),
        ("config --set run.id=a --set input.topics=['a'] --set kafcka.client_id=x", r"did you mean kafka\?"),
    ],
)
def test_a_wrong_command_line(tmp_path: Path, arguments: str, said: str):
    assert re.search(said, failure(stream_learner(*arguments.split(), folder=tmp_path), ExitCode.USAGE))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[run", "is not valid TOML"),
        ('[run]\nid = "a"\n[input]\ntopic = ["a"]', r"unknown setting input\.topic; did you mean topics\?"),
        ('run.id = "a"\ninput.topics = ["a"]\n[batch]\nsize = 0', r"batch\.size: .*greater than 0"),
        (
            'run.id = "a"\ninput.topics = ["a"]\n[kafka]\nsasl_password_file = "no"\nsecurity_protocol = "SASL_SSL"',
            "kafka: ",
        ),
    ],
)
def test_a_wrong_settings_file(tmp_path: Path, content: str, said: str):
    (tmp_path / "worker.toml").write_text(content)
    assert re.search(said, failure(stream_learner("config", "worker.toml", folder=tmp_path), ExitCode.USAGE))


def test_a_wrong_environment(run: Run):
    done = run("config", environment={"STREAM_LEARNER_KAFCKA__CLIENT_ID": "x"})
    assert "did you mean kafka?" in failure(done, ExitCode.USAGE)
    done = run("config", environment={"STREAM_LEARNER_BATCH__SIZE": "many"})
    assert "batch.size: " in failure(done, ExitCode.USAGE)


def test_a_monitoring_port_that_is_taken(run: Run, taken: int):
    said = failure(run("run", sets=f"monitoring.port={taken}"), ExitCode.USAGE)
    assert f"cannot listen on 127.0.0.1:{taken}" in said
    assert "monitoring.port" in said


@pytest.mark.parametrize("command", ["topics", "status", "feed"])
@pytest.mark.parametrize(("servers", "reason"), [("127.0.0.1:1", "ECONNREFUSED"), ("kafka.invalid:9092", "DNS")])
def test_no_broker(run: Run, command: str, servers: str, reason: str):
    said = failure(run(command, sets=f"kafka.bootstrap_servers={servers} {IMPATIENT}"), ExitCode.KAFKA)
    assert servers in said
    assert reason in said
    assert "check kafka.bootstrap_servers" in said


def test_a_person_who_waits_for_kafka_sees_why(run: Run):
    command = [*MODULE, "status", str(run.file), "--set", NOWHERE, "--set", "kafka.request_timeout_s=1"]
    with Terminal(command, run.folder, columns=200) as terminal:
        terminal.await_text("127.0.0.1:1 cannot be reached yet: .*ECONNREFUSED; retrying for up to 1 s\n+error: ")
        assert terminal.wait() == ExitCode.KAFKA


def test_no_broker_for_a_worker(run: Run):
    """Its log comes first."""
    done = run("run", sets=f"{NOWHERE} {IMPATIENT}")
    assert done.code == ExitCode.KAFKA
    assert "check kafka.bootstrap_servers" in done.err.splitlines()[-1]
    assert "Traceback" not in done.err


@pytest.mark.parametrize("command", ["run", "status", "topics", "feed"])
def test_topics_that_are_missing(run: Run, command: str):
    done = run(command, *(["--check"] if command == "topics" else []))
    said = failure(done, ExitCode.TOPICS)
    assert re.search(rf"{run.input} (is|are) missing", said)
    assert "stream-learner topics" in said


def test_a_topic_that_differs(ready: Run, kafka: KafkaSettings):
    ask(kafka, "adding partitions", lambda admin: admin.create_partitions({f"{ready.id}.metrics": 3}))
    for options in ([], ["--check"]):
        assert f"topic {ready.id}.metrics has 3 partitions, not 1" in failure(
            ready("topics", *options), ExitCode.TOPICS
        )


def test_more_replicas_than_brokers(run: Run):
    said = failure(run("topics", sets="topics.replication_factor=3"), ExitCode.TOPICS)
    assert "topics.replication_factor" in said


def test_a_store_that_cannot_be_used(ready: Run):
    (ready.folder / "file").touch()
    said = failure(ready("run", sets="checkpoint.store=file/objects"), ExitCode.STORE)
    assert "file/objects cannot be used: " in said


def test_a_store_that_fails_its_trial_before_kafka_is_asked(run: Run):
    said = failure(run("run", sets=f"checkpoint.store=/proc {NOWHERE}"), ExitCode.STORE)
    assert "checkpoint.store file:///proc failed a trial: " in said
    assert "make room, give it the rights, or set checkpoint.store to another place" in said


def test_a_rebuild_makes_no_store(run: Run):
    said = failure(
        run("rebuild", "--from", "0", "--to", "1", sets=f"checkpoint.store=nowhere {NOWHERE}"), ExitCode.STORE
    )
    assert "nowhere is missing; set it to where the run's objects are" in said
    assert not (run.folder / "nowhere").exists()


@pytest.mark.parametrize("command", ["feed", "demo"])
@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("missing", "there is no folder missing; a data set is"),
        ("empty", "there is no image in empty that can be opened; a data set is"),
        ("flat", r"images such as flat/image\.png \(1 in total\) are in no class folder"),
        ("broken", r"train\.parquet is not in the image layout"),
        ("unlabelled", r"unlabelled has 2 faults, so nothing is fed: 0\.parquet/0: the label nan is not .*/1: "),
        ("latin-1", r"1 fault, so nothing is fed: caf\\udce9: the label is not UTF-8 text\. Correct"),
        ("loop", r"loop/cat/again and loop/cat are the same folder; remove the link"),
    ],
)
def test_a_data_set_that_cannot_be_read(run: Run, command: str, data: str, said: str):
    cat = Path("loop", "cat")
    for name in ("empty", "flat", "broken", "unlabelled", Path("latin-1", os.fsdecode(b"caf\xe9")), cat):
        (run.folder / name).mkdir(parents=True)
    image = run.folder / "flat" / "image.png"
    Image.new("L", (8, 8)).save(image)
    shutil.copy(image, run.folder / "latin-1" / os.fsdecode(b"caf\xe9"))
    shutil.copy(image, run.folder / cat)
    (run.folder / cat / "again").symlink_to(".")
    rows = pa.table({"image": [{"bytes": image.read_bytes()}] * 2, "label": [math.nan] * 2})
    pq.write_table(rows, run.folder / "unlabelled" / "0.parquet")
    (run.folder / "broken" / "train.parquet").write_bytes(b"PAR1")
    config = [run.file] if command == "feed" else []
    done = stream_learner(command, *config, "--data", data, folder=run.folder)
    assert re.search(said, failure(done, ExitCode.DATA))


def test_a_split_that_a_data_set_lacks(ready: Run):
    assert "no test split" in failure(ready("feed", "--split", "test"), ExitCode.DATA)


def test_a_kafka_that_cannot_start(tmp_path: Path, taken: int):
    said = failure(stream_learner("kafka", "--port", taken, folder=tmp_path), ExitCode.KAFKA)
    assert f"port {taken} on 127.0.0.1 is in use" in said
    (tmp_path / "file").touch()
    done = stream_learner("kafka", "--port", free_port(), "--folder", "file/kafka", folder=tmp_path)
    assert "file/kafka: Not a directory; choose another folder" in failure(done, ExitCode.KAFKA)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("config missing.toml", ExitCode.USAGE),
        ("config --nope", ExitCode.USAGE),
        ("feed --set run.id=a --set input.topics=['a'] --data missing", ExitCode.DATA),
    ],
)
def test_debug_shows_the_traceback_and_the_same_line(tmp_path: Path, arguments: str, code: ExitCode):
    plain = stream_learner(*arguments.split(), folder=tmp_path)
    for words in ([*arguments.split(), "--debug"], ["--debug", *arguments.split()]):
        debug = stream_learner(*words, folder=tmp_path)
        assert debug.code == plain.code == code
        assert debug.err.startswith("Traceback (most recent call last):")
        assert debug.err.endswith("\n" + plain.err)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            "lambda: nothing",
            "own.py:4 failed: NameError: name 'nothing' is not defined (`--debug` shows the traceback)",
        ),
        ("partial(json.loads, '{')", "(a bug; `--debug` shows the traceback)"),
        ("partial(__import__('stream_learner.text').text.printable, None)", "(a bug; `--debug` shows the traceback)"),
    ],
)
def test_what_fails_in_code_of_ones_own_is_no_bug(tmp_path: Path, command: str, said: str):
    own = tmp_path / "own.py"
    imports = "import json\nfrom functools import partial\nfrom stream_learner import cli\n"
    own.write_text(f"{imports}cli.exit_with({command}, False)")
    done = subprocess.run([sys.executable, str(own)], capture_output=True, text=True)
    assert done.returncode == ExitCode.INTERNAL
    assert done.stderr.strip().endswith(said)


def test_a_module_of_ones_own_that_python_cannot_read_is_named(tmp_path: Path):
    (tmp_path / "own.py").write_text("def network(:")
    script = "from stream_learner import cli\ncli.exit_with(lambda: __import__('own'), False)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == ExitCode.INTERNAL
    assert f"{tmp_path / 'own.py'}:1 failed: SyntaxError: invalid syntax" in done.stderr


def test_ctrl_c_ends_a_command_that_waits(run: Run):
    with socket.create_server((HOST, 0)) as silent:
        silent.settimeout(60)
        servers = f"kafka.bootstrap_servers={HOST}:{silent.getsockname()[1]}"
        command = [*MODULE, "status", str(run.file), "--set", servers]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            connection, _ = silent.accept()
            with connection:
                process.send_signal(signal.SIGINT)
                out, err = process.communicate()
    assert process.returncode == ExitCode.INTERRUPTED
    assert (out, err) == ("", "")


@pytest.mark.parametrize("arguments", ["sesame", "two sesame", "--set sesame", "--set sasl_password=sesame"])
def test_no_failure_repeats_a_password_put_in_the_wrong_place(run: Run, arguments: str):
    assert "sesame" not in failure(run("config", *arguments.split()), ExitCode.USAGE)
    assert "sesame" not in failure(stream_learner("config", "sesame", folder=run.folder), ExitCode.USAGE)


HOSTILE = "\x1b[2J\x9b\u202e\u2028"


@pytest.mark.parametrize("options", [[], ["--debug"]])
def test_a_failure_prints_text_from_outside_escaped(run: Run, options: list[str]):
    done = run("feed", "--data", f"{HOSTILE}s3://me:sesame@bucket", *options)
    assert done.code == ExitCode.DATA
    assert r"\u001b[2J\u009b\u202e" in done.err
    assert "s3:/***@bucket" in done.err
    assert not {*"\x1b\x9b\u202e\u2028"} & set(done.err)
    assert "sesame" not in done.err


# Commands that succeed


@pytest.mark.parametrize("arguments", [["--help"], ["config"], ["topics"], ["status"], ["feed", "--limit", "1"]])
def test_torch_is_not_loaded_where_it_is_not_needed(ready: Run, arguments: list[str]):
    config = [] if arguments == ["--help"] else [str(ready.file)]
    command = [sys.executable, "-X", "importtime", "-m", "stream_learner", *arguments, *config]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == ExitCode.OK, done.stderr
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "stream_learner.cli" in modules
    assert "torch" not in modules


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
    assert sorted(made[:-1]) == sorted(
        f"created {run.id}.{name}" for name in ("checkpoints", "history", "weights", "metrics", "dead-letters", "input")
    )
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
    """End offset of each partition, as a feed tells it."""
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
    assert time.time() - datetime.fromisoformat(log[-1]["timestamp"]).timestamp() < 2  # generous for half a second
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
