import json
import logging
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

import pytest
import structlog
from pydantic import SecretStr

from stream_learner.monitoring import logs


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """Return a function that gives the text on standard error since its last call."""
    root, kafka = logging.getLogger(), logging.getLogger("kafka")
    before = root.handlers, root.level, kafka.level
    yield lambda: capsys.readouterr().err
    root.handlers, root.level, kafka.level = before
    logging.captureWarnings(False)
    structlog.reset_defaults()


def fail() -> None:
    password = "sesame"
    raise ValueError(f"a password of {len(password)} letters")


def test_every_line_has_the_rank(stderr):
    logs.configure("info", "json", rank=3)
    structlog.get_logger().info("committed")
    logging.getLogger("other").warning("of a library")
    assert [json.loads(line)["rank"] for line in stderr().splitlines()] == [3, 3]


def test_json_is_one_object_a_line_whoever_writes(stderr):
    logs.configure("info", "json")
    structlog.get_logger().info("committed", sequence=3, loss=float("nan"), password=SecretStr("sesame"))
    logging.getLogger("kafka.client").warning("node %d\nis gone", 1)
    try:
        fail()
    except ValueError:
        structlog.get_logger().exception("failed")
    written = stderr()
    committed, kafka, failed = map(json.loads, written.splitlines())
    assert committed["event"] == "committed"
    assert committed["level"] == "info"
    assert committed["logger"] == __name__
    assert (committed["sequence"], committed["loss"]) == (3, None)
    assert datetime.fromisoformat(committed["timestamp"]).utcoffset() == timedelta(0)
    assert kafka["event"] == "node 1\\u000ais gone"
    assert kafka.keys() == {"event", "level", "logger", "timestamp"}
    assert failed["exception"].endswith("ValueError: a password of 6 letters")
    assert "sesame" not in written


def test_console_is_for_people_and_shows_no_local_variables(stderr):
    logs.configure("info", "console")
    try:
        fail()
    except ValueError:
        structlog.get_logger().exception("failed", sequence=3)
    written = stderr()
    first, *trace = written.splitlines()
    assert "failed" in first
    assert "sequence=3" in first
    assert trace[-1] == "  ValueError: a password of 6 letters"
    assert "'sesame'" not in written


@pytest.mark.parametrize("form", ["console", "json"])
def test_text_from_outside_is_escaped_wherever_it_stands(stderr, form):
    logs.configure("info", form)
    hostile = "\x1b[2J\u202e\n2026-01-01 [info] all is well s3://me:sesame@bucket"
    structlog.get_logger().info(hostile, label=hostile, rejects={hostile: [hostile]})
    logging.getLogger("kafka.client").warning("node %s", hostile)
    try:
        raise ValueError(hostile)
    except ValueError:
        structlog.get_logger().exception("failed")
    written = stderr()
    assert not {"\x1b", "\u202e"} & set(written)
    assert "sesame" not in written
    assert not any(line.startswith("2026-01-01") for line in written.splitlines())
    assert "all is well" in written


@pytest.mark.parametrize(
    ("level", "ours", "kafkas"),
    [
        ("debug", ["DEBUG", "INFO", "WARNING", "ERROR"], ["INFO", "WARNING", "ERROR"]),
        ("info", ["INFO", "WARNING", "ERROR"], ["WARNING", "ERROR"]),
        ("warning", ["WARNING", "ERROR"], ["WARNING", "ERROR"]),
        ("error", ["ERROR"], ["ERROR"]),
    ],
)
def test_kafka_is_quieter_and_never_at_debug_where_it_writes_passwords(stderr, level, ours, kafkas):
    logs.configure(level, "json")
    for name in ("DEBUG", "INFO", "WARNING", "ERROR"):
        structlog.get_logger().log(logging.getLevelName(name), name, by="us")
        logging.getLogger("kafka.admin.client").log(logging.getLevelName(name), name)
    lines = [json.loads(line) for line in stderr().splitlines()]
    assert [line["event"] for line in lines if "by" in line] == ours
    assert [line["event"] for line in lines if "by" not in line] == kafkas


def test_pythons_warnings_are_logged_too(stderr):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logs.configure("info", "json")
        warnings.warn("a device is slow", stacklevel=1)
        logging.captureWarnings(False)
    (line,) = stderr().splitlines()
    assert "a device is slow" in json.loads(line)["event"]


def test_configuring_again_does_not_write_twice(stderr):
    logs.configure("info", "json")
    logs.configure("info", "json")
    structlog.get_logger().info("once")
    assert stderr().count("once") == 1


def test_kafka_repeats_itself_only_so_often():
    class Clock:
        now = 0.0

    def passes(name: str, node: int) -> bool:
        return repeats.filter(logging.LogRecord(name, logging.WARNING, "", 0, "node %d is gone", (node,), None))

    repeats = logs._Repeats(lambda: Clock.now)
    assert passes("kafka.net", 1)
    assert not passes("kafka.net", 2)
    assert passes("kafka.cluster", 1)
    assert all(passes("stream_learner", node) for node in range(3))
    Clock.now += logs.REPEAT_EVERY_S
    assert passes("kafka.net", 1)
