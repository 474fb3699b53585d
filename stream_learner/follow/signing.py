"""Signatures of folders, in the format of OpenSSF Model Signing (https://github.com/sigstore/model-transparency)."""

import os
from pathlib import Path

from stream_learner.errors import UsageError

SIGNATURE = "model.sig"


class Signer:
    """Signs folders with a private key, without any server."""

    def __init__(self, key_file: Path):
        """Read the key: PEM, an elliptic curve (P-256, P-384 or P-521), not encrypted. Raises UsageError."""
        try:
            from model_signing import signing  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UsageError(
                f'the library model-signing cannot be imported ({error}): pip install "stream-learner[signing]"'
            ) from None
        try:
            self._config = signing.Config().use_elliptic_key_signer(private_key=key_file)
        except OSError as error:
            raise UsageError(f"the key {key_file} cannot be read: {error.strerror}") from None
        # Keys of another kind have no curve. Encrypted keys raise TypeError.
        except (ValueError, TypeError, AttributeError):
            raise UsageError(
                f"the key {key_file} cannot be used; give the PEM file of an unencrypted private key on P-256, P-384 "
                "or P-521"
            ) from None

    def sign(self, folder: Path) -> None:
        """Write the signature of all files in a folder into the folder, as `model.sig`."""
        signature = folder / SIGNATURE
        self._config.sign(folder, signature)
        with signature.open("rb") as written:
            os.fsync(written.fileno())
