"""Ed25519 signatures (RFC 8032) of a run's published records, and the PEM files of the keys."""

import errno
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

HEADER = "signature"
MAX_KEY_BYTES = 16 * 1024

Headers = Sequence[tuple[str, bytes | None]]


class Verifier:
    """Verifier with a set of public keys. A signature must match one of them."""

    def __init__(self, keys: Iterable[Ed25519PublicKey]):
        self._keys = list(keys)

    def accepts(self, value: bytes, headers: Headers) -> bool:
        """Return whether the headers hold exactly one signature, and one of the keys verifies it for these bytes."""
        signatures = [signature or b"" for name, signature in headers if name == HEADER]
        return len(signatures) == 1 and any(_verifies(key, signatures[0], value) for key in self._keys)

    def knows(self, key: Ed25519PrivateKey) -> bool:
        """Return whether the public key of this private key is one of the keys."""
        return key.public_key() in self._keys


def read_signing_key(path: Path) -> Ed25519PrivateKey:
    """Read a private key. Raises ValueError when the file does not hold an unencrypted Ed25519 key in PEM.

    The message has neither the library's error nor the path, because the setting may hold the key itself by mistake.
    """
    try:
        data = _read(path)
    except OSError as error:
        raise ValueError(f"the file of signing_key_file cannot be read: {error.strerror}") from None
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(
            "the file of signing_key_file does not hold an unencrypted Ed25519 private key in PEM; see "
            'docs/security.md, "Signing", for how to make one'
        )
    return key


def read_verify_key(path: Path) -> Ed25519PublicKey:
    """Read a public key. Raises ValueError when the file does not hold an Ed25519 public key in PEM."""
    try:
        data = _read(path)
    except OSError as error:
        raise ValueError(f"verify_key_files: cannot read {str(path)!r}: {error.strerror}") from None
    try:
        key = load_pem_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError(
            f"verify_key_files: {str(path)!r} does not hold an Ed25519 public key in PEM; see docs/security.md, "
            '"Signing", for how to make one'
        )
    return key


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_KEY_BYTES)
    except ValueError:  # a null byte in the name
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from None


def _verifies(key: Ed25519PublicKey, signature: bytes, value: bytes) -> bool:
    try:
        key.verify(signature, value)
    except InvalidSignature:
        return False
    return True
