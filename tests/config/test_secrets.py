"""No output and no message shows a password."""

import json

import pytest
from settings_file import FILE, problem

from stream_learner import config

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
