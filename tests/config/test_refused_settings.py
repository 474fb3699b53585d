"""Wrong settings are refused with a message that names them."""

import pytest
from settings_file import problem

from stream_learner import config
from stream_learner.errors import UsageError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[kafka]\nbootstrap_server = 'x'", "unknown setting kafka.bootstrap_server; did you mean bootstrap_servers?"),
        ("[kafak]\nclient_id = 'x'", "unknown setting kafak; did you mean kafka?"),
        ("[batch]\nqqq = 1", "unknown setting batch.qqq; known here: linger_s, max_span, size"),
        ("size = 1", "unknown setting size; did you mean batch.size?"),
        ("qqq = 1", "unknown setting qqq; known here: batch, checkpoint, drift"),
        ("[learning]\nhead = 'ridge'", "unknown setting learning.head; did you mean model.head?"),
        ("[batch]\nmax_items = 1", "did you mean memory.max_items or held_out.max_items?"),
    ],
)
def test_an_unknown_key_of_the_file_is_refused_with_the_nearest_name(tmp_path, text, message):
    path = tmp_path / "worker.toml"
    path.write_text(text)
    assert message in problem(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("KAFKA__BOOTSTRAP", "unknown setting kafka.bootstrap; did you mean bootstrap_servers?"),
        ("KAFAK__CLIENT_ID", "unknown setting STREAM_LEARNER_KAFAK__CLIENT_ID in the environment; did you mean kafka?"),
        ("BATCH_SIZE", "unknown setting STREAM_LEARNER_BATCH_SIZE in the environment; did you mean batch?"),
    ],
)
def test_an_unknown_variable_is_refused_with_the_nearest_name(file, monkeypatch, name, message):
    monkeypatch.setenv(config.ENV_PREFIX + name, "x")
    assert problem(file) == message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("kafka.client=x", "unknown setting kafka.client; did you mean client_id?"),
        ("kafak.client_id=x", "unknown setting kafak; did you mean kafka?"),
        ("kafka.client_id", "--set kafka.client_id is not of the form section.key=value"),
        ("client_id=x", "--set client_id is not of the form section.key=value"),
        ("kafka.sasl.username=x", "--set *** is not of the form section.key=value"),
    ],
)
def test_an_unknown_override_is_refused_with_the_nearest_name(file, override, message):
    assert problem(file, override) == message


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("run.id=two words", "run.id"),
        ("run.seed=-1", "run.seed"),
        ("input.topics=[]", "input.topics"),
        ("input.topics=images", "input.topics"),
        ("batch.size=0", "batch.size"),
        ("batch.size=many", "batch.size"),
        ("learning.optimizer=adm", "learning.optimizer"),
        ("learning.learning_rate=nan", "learning.learning_rate"),
        ("weights.max_weight=inf", "weights.max_weight"),
        ("model.channels=2", "model.channels"),
        ("model.mean=[0.1, 0.2]", "model: mean needs 1 or 3 values"),
        ("model.std=[0]", "model.std"),
        ("split.test=0.95", "split: validation + test must be below 1"),
        ("split.held_out_from=['images', 'imges']", "split.held_out_from: imges is not in input.topics"),
        ("split.held_out_from=[]", "split.held_out_from"),
        ("release.rule=best", "release.rule"),
        ("release.max_drop=2", "release.max_drop"),
        ("release.max_old_class_drop=5", "release.max_old_class_drop"),
        ("rejects.max_share=1.5", "rejects.max_share"),
        ("monitoring.port=70000", "monitoring.port"),
        ("run.id=a/b", "run.id: must be 1 to 200 letters (a to z, A to Z), digits, dots, hyphens and underscores"),
        (
            "kafka.sasl_password=x",
            "kafka: security_protocol = PLAINTEXT does not use sasl_password; set it to SASL_SSL",
        ),
        ("kafka.security_protocol=SASL_SSL", "kafka: SASL_SSL needs sasl_mechanism, sasl_username and sasl_password"),
    ],
)
def test_a_bad_value_names_its_field(file, override, field):
    message = problem(file, override)
    assert message.startswith(field)
    assert "\n" not in message


NAMED = [
    ("input.format=plane", "input.format: 'plane' is unknown; did you mean plain?"),
    ("model.name=cnm", "model.name: 'cnm' is unknown; did you mean cnn?"),
    ("model.name=:Net", "model.name: ':Net' is not of the form `package.module:name`"),
    ("model.name=.models:Net", "model.name: '.models:Net' is not of the form `package.module:name`"),
    ("model.name=models:", "model.name: 'models:' is not of the form `package.module:name`"),
    ("model.head=rigde", "model.head: 'rigde' is unknown; did you mean ridge?"),
    ("learning.strategy=err", "learning.strategy: 'err' is unknown; did you mean er?"),
    ("learning.strategy=xyz", "'xyz' is unknown; known are derpp, er, er_ace, er_la, finetune, mkd"),
    ("learning.augment=['crop', 'flop']", "learning.augment.1: 'flop' is unknown; did you mean flip?"),
    ("weights.policies=['novelti']", "weights.policies.0: 'novelti' is unknown; did you mean novelty?"),
]


@pytest.mark.parametrize(("override", "message"), NAMED)
def test_a_name_that_is_not_there_is_refused_with_the_nearest_one(file, override, message):
    assert message in problem(file, override)


@pytest.mark.parametrize(
    "output", ["checkpoints", "history", "weights", "metrics", "dead-letters", "predictions", "acks", "pins"]
)
def test_a_topic_that_the_run_writes_is_not_read(file, output):
    said = "is an output topic of this run"
    assert f"input.topics: p.{output} {said}" in problem(
        file, "topics.prefix=p", f"input.topics=['images', 'p.{output}']"
    )
    assert f"input.topics: digits.{output} {said}" in problem(file, f"input.topics=['digits.{output}']")
    config.load(file, [f"input.topics=['other.{output}']"])  # of another run


def test_a_bad_value_on_which_defaults_depend_is_told_once(file):
    assert problem(file, "learning.steps_per_batch=0") == "learning.steps_per_batch: Input should be greater than 0"


def test_a_bad_value_in_the_environment_names_its_field(file, monkeypatch):
    monkeypatch.setenv("STREAM_LEARNER_BATCH__SIZE", "many")
    assert problem(file).startswith("batch.size: ")
    monkeypatch.setenv("STREAM_LEARNER_INPUT__TOPICS", "images")
    message = problem(file)
    assert '"input"' in message
    assert 'write a list as ["a", "b"]' in message


def test_what_is_required_is_named(tmp_path, monkeypatch):
    assert problem(None) == "run.id is required; input.topics is required"
    monkeypatch.setenv("STREAM_LEARNER_RUN__SEED", "1")
    assert problem(None) == "run.id is required; input.topics is required"
    assert "there is no settings file" in problem(tmp_path / "missing.toml")
    assert "there is no settings file" in problem(tmp_path)


@pytest.mark.parametrize("content", [b"[run", b'[run]\nid = "\xff"'])
def test_a_file_that_is_not_toml_is_named(tmp_path, content):
    path = tmp_path / "worker.toml"
    path.write_bytes(content)
    assert problem(path).startswith(f"{path} is not valid TOML: ")


@pytest.mark.parametrize("name", ["PORT", "MONITORING_PORT", "MONITORING_HOST", "SERVICE", "KAFKA_SSL_CAFILE"])
def test_a_misspelt_variable_is_not_taken_for_a_services(file, monkeypatch, name):
    monkeypatch.setenv(config.ENV_PREFIX + name, "9464")
    assert problem(file).startswith(f"unknown setting STREAM_LEARNER_{name} in the environment")


def test_a_manifest_has_room_for_all_segments(file):
    bounds = ["memory.max_bytes=1048576", "held_out.max_bytes=524288"]
    assert config.load(file, [*bounds, "memory.segment_bytes=4096"]).memory.segment_bytes == 4096
    with pytest.raises(UsageError, match=r"memory\.segment_bytes must be at least 4096"):
        config.load(file, [*bounds, "memory.segment_bytes=4095"])
    with pytest.raises(UsageError, match=r"memory\.segment_bytes must be at least 101376.*checkpoint\.keep"):
        config.load(file, [*bounds, "memory.segment_bytes=4096", "checkpoint.keep=98"])
    with pytest.raises(UsageError, match=r"input\.topics: the names of all topics take more than 150000 bytes"):
        config.load(file, [f"input.topics={[f'{n:04d}'.ljust(200, 'x') for n in range(751)]}"])
    with pytest.raises(UsageError, match=r"memory\.segment_bytes: .* less than or equal to 1073741824"):
        config.load(file, ["memory.segment_bytes=1073741825"])  # places in a segment are int32


@pytest.mark.parametrize("setting", ["run.id=X", "topics.prefix=X", 'input.topics=["X"]', 'split.held_out_from=["X"]'])
@pytest.mark.parametrize("name", [".", "..", "", "a/b", "../a", "a\\n", "x" * 201])
def test_names_that_are_no_names_are_refused(file, setting: str, name: str):
    with pytest.raises(UsageError, match=setting.partition("=")[0]):
        config.load(file, [setting.replace("X", name)])


@pytest.mark.parametrize("setting", ["run.session_timeout_s", "checkpoint.timeout_s", "checkpoint.max_pending_bytes"])
def test_time_outs_that_kafka_cannot_express_are_refused(file, setting: str):
    with pytest.raises(UsageError, match=rf"{setting}.* 2147483\b"):
        config.load(file, [f"{setting}={10**15}"])
