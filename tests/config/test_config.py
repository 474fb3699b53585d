import json
import os
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel, ValidationError

from stream_learner import config
from stream_learner.config import Settings
from stream_learner.errors import ExitCode, UsageError
from stream_learner.registry import AUGMENTATIONS, FORMATS, HEADS, MODELS, STRATEGIES, WEIGHTS

FILE = """
[run]
id = "digits"

[input]
topics = ["images"]

[kafka]
client_id = "file"
"""


@pytest.fixture(autouse=True)
def no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(config.ENV_PREFIX):
            monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "worker.toml"
    path.write_text(FILE)
    return path


def problem(path: Path | None, *overrides: str) -> str:
    with pytest.raises(UsageError) as caught:
        config.load(path, list(overrides))
    assert caught.value.code is ExitCode.USAGE
    return str(caught.value)


def test_the_environment_is_stronger_than_the_file_and_set_stronger_than_both(file, monkeypatch):
    assert config.load(file).kafka.client_id == "file"
    monkeypatch.setenv("STREAM_LEARNER_KAFKA__CLIENT_ID", "environment")
    assert config.load(file).kafka.client_id == "environment"
    assert config.load(file, ["kafka.client_id=set"]).kafka.client_id == "set"


def test_sources_are_merged_key_by_key(file, monkeypatch):
    monkeypatch.setenv("STREAM_LEARNER_KAFKA__BOOTSTRAP_SERVERS", "a:9092,b:9092")
    settings = config.load(file, ["kafka.ssl_check_hostname=false", "batch.size=8", "batch.linger_s=0.5"])
    assert settings.kafka.client_id == "file"
    assert settings.kafka.bootstrap_servers == "a:9092,b:9092"
    assert settings.kafka.ssl_check_hostname is False
    assert (settings.batch.size, settings.batch.linger_s) == (8, 0.5)


def test_a_file_is_not_needed(monkeypatch):
    monkeypatch.setenv("STREAM_LEARNER_RUN__ID", "digits")
    monkeypatch.setenv("STREAM_LEARNER_INPUT__TOPICS", '["images", "more"]')
    assert config.load(None).input.topics == ["images", "more"]
    assert config.load(None).run.id == "digits"


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ('input.topics=["a", "b"]', ["a", "b"]),
        ("kafka.client_id=a=b", "a=b"),
        ("kafka.client_id=bare words", "bare words"),
        ('kafka.client_id="42"', "42"),
        ("checkpoint.store=s3://bucket/folder", "s3://bucket/folder"),
        ("learning.device=cuda:1", "cuda:1"),
        ("learning.learning_rate=1e-2", 0.01),
        ("learning.channels_last=true", True),
        ("learning.channels_last=auto", "auto"),
        ("model.mean=[0.1, 0.2, 0.3]", [0.1, 0.2, 0.3]),
    ],
)
def test_set_takes_toml_values_and_bare_words(file, override, value):
    section, key = override.partition("=")[0].split(".")
    assert getattr(getattr(config.load(file, [override]), section), key) == value


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


@pytest.mark.parametrize("registry", [AUGMENTATIONS, FORMATS, HEADS, MODELS, STRATEGIES, WEIGHTS])
def test_every_name_is_taken_and_stands_for_something(file, registry):
    section, key = registry.setting.split(".")
    for name in registry:
        value = f"['{name}']" if registry in (AUGMENTATIONS, WEIGHTS) else name
        chosen = getattr(config.load(file, [f"{registry.setting}={value}", "weights.half_life_s=1"]), section)
        assert name in getattr(chosen, key)
        assert registry[name] is None or callable(registry[name])


def test_reading_settings_imports_no_code_of_ones_own(file):
    assert config.load(file, ["model.name=not_there:Net", "input.format=not_there:own"]).model.name == "not_there:Net"


@pytest.mark.parametrize("output", ["checkpoints", "history", "weights", "metrics", "dead-letters"])
def test_a_topic_that_the_run_writes_is_not_read(file, output):
    said = "is a topic that this run writes"
    assert f"input.topics: p.{output} {said}" in problem(
        file, "topics.prefix=p", f"input.topics=['images', 'p.{output}']"
    )
    assert f"input.topics: digits.{output} {said}" in problem(file, f"input.topics=['digits.{output}']")
    config.load(file, [f"input.topics=['other.{output}']"])  # of another run


def test_a_bad_value_on_which_defaults_depend_is_told_once(file):
    assert problem(file, "learning.steps_per_batch=0") == "learning.steps_per_batch: Input should be greater than 0"


def test_several_steps_per_batch_are_smaller_ones_and_see_images_more_varied(file):
    one, four = (config.load(file, [f"learning.steps_per_batch={steps}"]).learning for steps in (1, 4))
    assert four.learning_rate == one.learning_rate / 2
    assert four.average_decay**4 == pytest.approx(one.average_decay)
    assert set(four.augment) > set(one.augment)
    given = ["learning.steps_per_batch=4", "learning.learning_rate=0.1", "learning.average_decay=0.5"]
    chosen = config.load(file, [*given, "learning.augment=['flip']"]).learning
    assert (chosen.learning_rate, chosen.average_decay, chosen.augment) == (0.1, 0.5, ["flip"])


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


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "worker.toml"
    path.write_bytes(b"\xef\xbb\xbf" + FILE.replace("\n", "\r\n").encode())
    assert config.load(path).kafka.client_id == "file"


@pytest.mark.parametrize("service", ["STREAM_LEARNER", "STREAM_LEARNER_X", "STREAM_LEARNER__X"])
def test_variables_of_a_kubernetes_service_are_no_settings(file, monkeypatch, service):
    for name, value in {
        "SERVICE_HOST": "10.43.7.9",
        "SERVICE_PORT": "9464",
        "SERVICE_PORT_HTTP_METRICS": "9464",
        "PORT": "tcp://10.43.7.9:9464",
        "PORT_9464_TCP": "tcp://10.43.7.9:9464",
        "PORT_9464_TCP_PROTO": "tcp",
        "PORT_9464_TCP_PORT": "9464",
        "PORT_9464_TCP_ADDR": "10.43.7.9",
    }.items():
        monkeypatch.setenv(f"{service}_{name}", value)
    assert config.load(file).run.id == "digits"


@pytest.mark.parametrize("name", ["PORT", "MONITORING_PORT", "MONITORING_HOST", "SERVICE", "KAFKA_SSL_CAFILE"])
def test_a_misspelt_variable_is_not_taken_for_a_services(file, monkeypatch, name):
    monkeypatch.setenv(config.ENV_PREFIX + name, "9464")
    assert problem(file).startswith(f"unknown setting STREAM_LEARNER_{name} in the environment")


def test_settings_cannot_be_changed_afterwards(file):
    settings = config.load(file)
    with pytest.raises(ValidationError):
        settings.batch.size = 1
    with pytest.raises(ValidationError):
        settings.run = settings.run


SASL = ["kafka.security_protocol=SASL_PLAINTEXT", "kafka.sasl_mechanism=PLAIN", "kafka.sasl_username=learner"]


def test_secrets_are_redacted(file):
    settings = config.load(file, [*SASL, "kafka.sasl_password=sesame"])
    assert settings.kafka.password() == "sesame"
    for shown in (
        repr(settings),
        str(settings),
        settings.model_dump_json(),
        json.dumps(settings.model_dump(mode="json")),
    ):
        assert "learner" in shown
        assert "sesame" not in shown
    assert "sesame" not in problem(file, *SASL, "kafka.sasl_password=sesame", "kafka.request_timeout_s=-1")


def test_passwords_come_from_files(file, tmp_path):
    secret = tmp_path / "password"
    secret.write_text("sesame \n")
    settings = config.load(file, [*SASL, f"kafka.sasl_password_file={secret}", f"kafka.ssl_key_password_file={secret}"])
    assert settings.kafka.password() == settings.kafka.key_password() == "sesame "
    assert "sesame" not in settings.model_dump_json()
    assert config.load(file).kafka.password() is config.load(file).kafka.key_password() is None


def test_a_password_file_that_cannot_be_read_is_named(file, tmp_path):
    message = problem(file, *SASL, f"kafka.sasl_password_file={tmp_path / 'missing'}")
    assert message == "kafka: cannot read the file that sasl_password_file names: No such file or directory"


@pytest.mark.parametrize(
    "overrides",
    [
        ["sasl_password=sesame"],
        ["sesame"],
        ["sesame="],
        ["kafka.sasl_password.sesame"],
        [*SASL, "kafka.sasl_password_file=sesame"],
        [*SASL, 'kafka.sasl_password_file="sesame\\u0000"'],
        ["kafka.bootstrap_servers=me:sesame@host:9092"],
        ["kafka.bootstrap_servers=kafka://me:sesame@host:9092"],
        ["kafka.security_protocol=sesame"],
        ["kafka.sasl_password=1", "kafka.request_timeout_s=sesame"],
        [*SASL, 'kafka.sasl_password=["sesame"]'],
    ],
)
def test_no_message_repeats_a_password_put_in_the_wrong_place(file, overrides):
    assert "sesame" not in problem(file, *overrides)


def test_no_message_repeats_a_password_of_file_or_environment(tmp_path, monkeypatch):
    assert "sesame" not in problem(tmp_path / "sesame")
    path = tmp_path / "worker.toml"
    for line in ("sasl_password = sesame", "sasl_password = 'sesame", "[kafka]\nsasl_password = 'a' sesame"):
        path.write_text(line)
        assert "sesame" not in problem(path).removeprefix(str(path))
    path.write_text(FILE)
    for name in ("SASL_PASSWORD", "KAFKA__SASL_PASSWORD__X", "KAFKA", "KAFKA__REQUEST_TIMEOUT_S"):
        monkeypatch.setenv(config.ENV_PREFIX + name, "sesame")
        assert "sesame" not in problem(path)
        monkeypatch.delenv(config.ENV_PREFIX + name)


def test_what_is_shown_of_the_settings_has_no_password(file, tmp_path):
    store = "s3://me:sesame@bucket/folder?token=sesame"
    names = ("ssl_cafile", "ssl_certfile", "ssl_keyfile", "ssl_key_password_file")
    wrong = [f"kafka.{name}=sesame" for name in names]
    settings = config.load(file, [f"checkpoint.store={store}", *SASL, "kafka.sasl_password=sesame", *wrong])
    assert settings.checkpoint.store == store
    assert "sesame" not in settings.model_dump_json()
    assert "s3://***@bucket/folder?***" in settings.model_dump_json()
    (tmp_path / "password").write_text("sesame")
    kept = config.load(file, [*SASL, f"kafka.sasl_password_file={tmp_path / 'password'}"])
    assert str(tmp_path / "password") in kept.model_dump_json()


def test_the_schema_describes_every_field(file):
    schema = config.schema()
    Draft202012Validator.check_schema(schema)
    for name, field in Settings.model_fields.items():
        assert schema["properties"][name]["description"] == field.description
        section = field.annotation
        assert isinstance(section, type)
        assert issubclass(section, BaseModel)
        described = schema["$defs"][section.__name__]["properties"]
        assert described.keys() == section.model_fields.keys()
        for key, setting in described.items():
            assert setting.get("description", "").endswith("."), f"{name}.{key}"
    Draft202012Validator(schema).validate(config.load(file).model_dump(mode="json"))


def test_every_default_can_be_written_down_and_read_again(file):
    written = config.load(file).model_dump_json()
    assert Settings.model_validate_json(written).model_dump_json() == written


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


def test_names_that_follow_from_settings(file):
    settings = config.load(file)
    assert settings.prefix == "digits"
    assert settings.transactional_id == "stream-learner.digits.worker"
    assert settings.standby_group == "stream-learner.digits.standby"
    assert config.load(file, ["topics.prefix=shared"]).transactional_id == "stream-learner.shared.worker"
    assert settings.replay_size == 3 * settings.batch.size == 96
    assert config.load(file, ["memory.replay_size=5"]).replay_size == 5
    bytes_in_a_transaction = settings.checkpoint.max_pending_bytes + settings.release.inline_max_bytes
    assert settings.transaction_timeout_s == settings.checkpoint.timeout_s + bytes_in_a_transaction / 2**20


def test_no_two_prefixes_have_a_name_in_common(file):
    prefixes = ["team", "team.a", "team.worker", "team.standby", "team.a.worker", "worker", "standby"]
    runs = [config.load(file, [f"topics.prefix={p}", f"run.id={r}"]) for p in prefixes for r in ("b", "a.b", p)]
    names = {(name, run.prefix) for run in runs for name in (run.transactional_id, run.standby_group)}
    assert len({name for name, _ in names}) == len(names) == 2 * len(prefixes)


@pytest.mark.parametrize("setting", ["run.id=X", "topics.prefix=X", 'input.topics=["X"]', 'split.held_out_from=["X"]'])
@pytest.mark.parametrize("name", [".", "..", "", "a/b", "../a", "a\\n", "x" * 201])
def test_names_that_are_no_names_are_refused(file, setting: str, name: str):
    with pytest.raises(UsageError, match=setting.partition("=")[0]):
        config.load(file, [setting.replace("X", name)])


@pytest.mark.parametrize("setting", ["run.session_timeout_s", "checkpoint.timeout_s", "checkpoint.max_pending_bytes"])
def test_time_outs_that_kafka_cannot_express_are_refused(file, setting: str):
    with pytest.raises(UsageError, match=rf"{setting}.* 2147483\b"):
        config.load(file, [f"{setting}={10**15}"])
