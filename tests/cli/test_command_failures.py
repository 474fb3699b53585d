"""Commands that fail: their exit codes, and one line for each failure."""

import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import HOSTILE, MODULE, Run, failure, stream_learner
from PIL import Image
from terminal import Terminal

from stream_learner.config import KafkaSettings
from stream_learner.errors import ExitCode
from stream_learner.local.broker import HOST, free_port
from stream_learner.streams.connection import ask

NOWHERE = "kafka.bootstrap_servers=127.0.0.1:1"
IMPATIENT = "kafka.request_timeout_s=0.5"


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
    assert "free disk space, give it the rights, or set checkpoint.store to another place" in said


def test_a_rebuild_makes_no_store(run: Run):
    said = failure(
        run("rebuild", "--from", "0", "--to", "1", sets=f"checkpoint.store=nowhere {NOWHERE}"), ExitCode.STORE
    )
    assert "nowhere is missing; set it to where the run's objects are, or start the worker" in said
    assert not (run.folder / "nowhere").exists()


@pytest.mark.parametrize("command", ["feed", "demo"])
@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("missing", "there is no folder missing; a data set is"),
        ("empty", "there is no image in empty that can be opened; a data set is"),
        ("flat", r"images such as flat/image\.png \(1 in total\) are not in a class folder"),
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


@pytest.mark.parametrize("options", [[], ["--debug"]])
def test_a_failure_prints_text_from_outside_escaped(run: Run, options: list[str]):
    done = run("feed", "--data", f"{HOSTILE}s3://me:sesame@bucket", *options)
    assert done.code == ExitCode.DATA
    assert r"\u001b[2J\u009b\u202e" in done.err
    assert "s3:/***@bucket" in done.err
    assert not {*"\x1b\x9b\u202e\u2028"} & set(done.err)
    assert "sesame" not in done.err
