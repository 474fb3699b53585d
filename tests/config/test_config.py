"""Settings from their sources, and what follows from them."""

import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel, ValidationError
from settings_file import FILE

from stream_learner import config
from stream_learner.config import Settings
from stream_learner.registry import AUGMENTATIONS, FORMATS, HEADS, MODELS, STRATEGIES, WEIGHTS


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


def test_several_steps_per_batch_are_smaller_ones_and_see_images_more_varied(file):
    one, four = (config.load(file, [f"learning.steps_per_batch={steps}"]).learning for steps in (1, 4))
    assert four.learning_rate == one.learning_rate / 2
    assert four.average_decay**4 == pytest.approx(one.average_decay)
    assert set(four.augment) > set(one.augment)
    given = ["learning.steps_per_batch=4", "learning.learning_rate=0.1", "learning.average_decay=0.5"]
    chosen = config.load(file, [*given, "learning.augment=['flip']"]).learning
    assert (chosen.learning_rate, chosen.average_decay, chosen.augment) == (0.1, 0.5, ["flip"])


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


def test_settings_cannot_be_changed_afterwards(file):
    settings = config.load(file)
    with pytest.raises(ValidationError):
        settings.batch.size = 1
    with pytest.raises(ValidationError):
        settings.run = settings.run


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
