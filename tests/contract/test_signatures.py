from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from stream_learner import config
from stream_learner.contract.signatures import HEADER, Verifier, read_signing_key, read_verify_key
from stream_learner.errors import UsageError

BASE = ["run.id=digits", 'input.topics=["images"]']
VALUE = b'{"sequence":1}'


def pem(key, encryption: KeySerializationEncryption | None = None) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())


def public_pem(key) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


ONE, ANOTHER = (Ed25519PrivateKey.generate() for _ in range(2))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    contents = {
        "one": pem(ONE),
        "one_public": public_pem(ONE),
        "another_public": public_pem(ANOTHER),
        "encrypted": pem(ONE, BestAvailableEncryption(b"password")),
        "of_another_kind": pem(generate_private_key(SECP256R1())),
        "of_another_kind_public": public_pem(generate_private_key(SECP256R1())),
        "no_key": b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n",
        "empty": b"",
    }
    paths = {name: tmp_path / name for name in contents}
    for name, content in contents.items():
        paths[name].write_bytes(content)
    return paths | {"missing": tmp_path / "missing", "folder": tmp_path}


def test_one_of_the_keys_must_have_signed_exactly_these_bytes(files):
    signer = read_signing_key(files["one"])
    signature = signer.sign(VALUE)
    assert len(signature) == 64
    both = Verifier([read_verify_key(files["another_public"]), read_verify_key(files["one_public"])])
    assert both.accepts(VALUE, [("other", b""), (HEADER, signature)])
    assert both.knows(signer)
    assert not both.accepts(VALUE + b" ", [(HEADER, signature)])
    assert not Verifier([read_verify_key(files["another_public"])]).accepts(VALUE, [(HEADER, signature)])
    for headers in ([], [(HEADER, None)], [(HEADER, b"")], [(HEADER, signature[:-1])], [(HEADER, signature)] * 2):
        assert not both.accepts(VALUE, headers)


@pytest.mark.parametrize("name", ["one_public", "encrypted", "of_another_kind", "no_key", "empty", "missing", "folder"])
def test_what_is_no_signing_key_is_refused_and_never_shown(files, name):
    with pytest.raises(UsageError, match=r"the file of signing_key_file (does not hold an|cannot be read)") as caught:
        config.load(None, [*BASE, f"security.signing_key_file={files[name]}"])
    content = files[name].read_text() if files[name].is_file() else ""
    assert not any(line in str(caught.value) for line in content.splitlines())


@pytest.mark.parametrize("name", ["one", "of_another_kind_public", "no_key", "empty", "missing", "folder"])
def test_what_is_no_verify_key_is_refused(files, name):
    with pytest.raises(UsageError, match=f"verify_key_files: .*{name if name != 'folder' else ''}"):
        config.load(None, [*BASE, f'security.verify_key_files=["{files["one_public"]}", "{files[name]}"]'])


def test_a_key_put_where_its_files_name_belongs_is_not_shown(files):
    text = files["one"].read_text()
    for key in (text, text.splitlines()[1], "x" * 10_000, "\0secret"):
        with pytest.raises(UsageError, match="cannot be read") as caught:
            config.load(None, [*BASE, f"security.signing_key_file={key}"])
        assert text.splitlines()[1] not in str(caught.value)


def test_a_run_must_accept_its_own_signature(files):
    keys = [f"security.signing_key_file={files['one']}", f'security.verify_key_files=["{files["another_public"]}"]']
    with pytest.raises(UsageError, match="the public key of signing_key_file is not in verify_key_files"):
        config.load(None, [*BASE, *keys])
    both = f'security.verify_key_files=["{files["another_public"]}", "{files["one_public"]}"]'
    security = config.load(None, [*BASE, keys[0], both]).security
    assert security.signer
    assert security.verifier
    assert config.load(None, BASE).security.signer is None
    assert config.load(None, BASE).security.verifier is None
