"""The start of a worker: checks that fail before Kafka is contacted, and signals during the start."""

import os
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from command_line import Done, stream_learner

from stream_learner import config
from stream_learner.errors import ExitCode
from stream_learner.learning.learner import Learner
from stream_learner.local.broker import HOST
from stream_learner.registry import AUGMENTATIONS, HEADS, MODELS, STRATEGIES, WEIGHTS
from stream_learner.run import start

# A port on which nothing listens: a run that asks Kafka for anything ends with code 3, and not before 30 s.
SETTINGS = """
run.id = "r"
input.topics = ["images"]
kafka.bootstrap_servers = "127.0.0.1:1"
monitoring.port = 0
log.level = "error"
"""

THREAD = "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "worker.toml").write_text(SETTINGS)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "latin-1.txt").write_bytes(b"caf\xe9\n")
    return tmp_path


def refusal(done: Done) -> str:
    assert done.code == ExitCode.USAGE, done.err
    assert done.err.startswith("error: "), done.err
    assert done.err.count("\n") == 1, done.err
    return done.err


WRONG = [
    ("model.name=cnnn", "model.name: 'cnnn' is unknown; did you mean cnn?"),
    ("model.name=no_module:Net", "model.name = 'no_module:Net' cannot be imported"),
    ("model.name=colorsys:rgb_to_hsv", "model.name = 'colorsys:rgb_to_hsv' cannot be called with classes, height"),
    ("model.name=timm:test_vitt", "did you mean timm:test_vit?"),
    ("model.name=resnet50", "resnet50 cannot learn from images of 32 x 32"),
    ("model.height=3", "model.height and model.width must be at least 4"),
    ("model.name=resnet18_slim model.width=8", "model.height and model.width must be at least 9"),
    ("model.weights=missing.safetensors", "model.weights: cannot read missing.safetensors"),
    ("model.weights=latin-1.txt", "model.weights: latin-1.txt is not a safetensors file"),
    ("model.head=no_module:Head", "model.head = 'no_module:Head' cannot be imported"),
    ("learning.strategy=colorsys:rgb_to_hsv", "learning.strategy = 'colorsys:rgb_to_hsv' is not a class derived from"),
    ("learning.strategy=mkd learning.average_decay=0", "learning.strategy = 'mkd' uses the average as teacher"),
    ("learning.augment=['colorsys:missing']", "learning.augment = 'colorsys:missing' cannot be imported"),
    ("model.head=ridge learning.strategy=no_module:S", "learning.strategy = 'no_module:S' cannot be imported"),
    ("weights.policies=['no_module:policy']", "weights.policies = 'no_module:policy' cannot be imported"),
    ("input.format=no_module:format", "input.format = 'no_module:format' cannot be imported"),
    ("input.topics=['r.metrics']", "input.topics: r.metrics is an output topic of this run"),
    ("learning.device=tpu", "learning.device = 'tpu' cannot be used"),
    ("learning.device=cuda:99", "learning.device = 'cuda:99' cannot be used"),
    ("checkpoint.store=nope://bucket", "checkpoint.store = 'nope://bucket' is not a folder or a known URL"),
    ("labels.allowed=missing.txt", "labels.allowed: cannot read missing.txt"),
    ("labels.allowed=empty.txt", "labels.allowed: empty.txt contains no label"),
    ("labels.allowed=latin-1.txt", "labels.allowed: latin-1.txt is not UTF-8 text"),
    ("labels.allowed=['a'] labels.aliases={b='c'}", "labels.aliases: 'b' stands for 'c', which"),
    ("security.signing_key_file=empty.txt", "security: "),
    ("security.verify_key_files=['missing.pem']", "security: "),
    (
        "kafka.security_protocol=SSL kafka.ssl_cafile=missing.pem",
        "kafka.ssl_cafile = missing.pem cannot be loaded",
    ),
]


@pytest.mark.parametrize("command", ["config", "run"])
@pytest.mark.parametrize(("sets", "said"), WRONG)
def test_wrong_settings_are_reported_before_kafka_is_touched(folder: Path, command: str, sets: str, said: str):
    overrides = [word for setting in sets.split(" ") for word in ("--set", setting)]
    done = stream_learner(command, "worker.toml", *overrides, folder=folder)
    assert said in refusal(done)
    assert not (folder / ".stream-learner").exists()


def test_config_shows_settings_that_a_run_refuses(folder: Path):
    done = stream_learner("config", "worker.toml", "--set", "labels.allowed=missing.txt", folder=folder)
    refusal(done)
    assert '"allowed": "missing.txt"' in done.out


@pytest.mark.parametrize("side", [1, start.ENOUGH_PIXELS])
@pytest.mark.parametrize("model", MODELS)
def test_what_is_not_tried_with_torch_always_fits(model: str, side: int):
    """A new name in a registry that needs torch to be judged, or larger images, must be known to `needs_torch`."""
    sets = ["run.id=r", "input.topics=['t']", f"model.name={model}", f"model.height={side}", f"model.width={side}"]
    for more in (
        *({f"model.head={head}"} for head in HEADS),
        *({f"learning.strategy={strategy}", "learning.average_decay=0.5"} for strategy in STRATEGIES),
        {f"learning.augment={[*AUGMENTATIONS]}", f"weights.policies={[*WEIGHTS]}", "weights.half_life_s=1"},
    ):
        settings = config.load(None, [*sets, *more])
        if not start.needs_torch(settings):
            Learner(settings)


@pytest.mark.parametrize("sets", ["model.name=cnnn", "monitoring.host=192.0.2.1"])
def test_what_is_refused_at_once_waits_for_no_import_of_torch(folder: Path, sets: str):
    command = [sys.executable, "-X", "importtime", "-m", "stream_learner", "run", "worker.toml", "--set", sets]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == ExitCode.USAGE, done.stderr
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "stream_learner.config" in modules
    assert "torch" not in modules


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("customized", [False, True])
def test_a_signal_at_the_start_ends_it_at_once(folder: Path, number: signal.Signals, customized: bool):
    """Also where a thread was started before the program, as tools that instrument it do."""
    if customized:
        (folder / "sitecustomize.py").write_text(THREAD)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "stream_learner", "run", "worker.toml", "--set"]
    with socket.create_server((HOST, 0)) as silent:
        silent.settimeout(60)
        command.append(f"kafka.bootstrap_servers={HOST}:{silent.getsockname()[1]}")
        obey = partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, cwd=folder, preexec_fn=obey, env=environment
        ) as process:
            connection, _ = silent.accept()
            with connection:
                process.send_signal(number)
                _, err = process.communicate()
    assert process.returncode == ExitCode.OK, err
    assert "Traceback" not in err
