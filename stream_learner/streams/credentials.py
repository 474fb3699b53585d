"""Certificates and passwords, read again for each connection so that they can be renewed while a worker runs."""

import os
import ssl
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import structlog
from kafka.net.sasl import register_sasl_mechanism
from kafka.net.sasl.abc import SaslMechanism
from kafka.net.sasl.plain import SaslMechanismPlain
from kafka.net.sasl.scram import SaslMechanismScram

from stream_learner.config import KafkaSettings
from stream_learner.errors import UsageError

log = structlog.get_logger()

CERTIFICATES = ("ssl_cafile", "ssl_certfile")
KEYS = ("ssl_keyfile", "ssl_key_password_file")


class Certificates:
    """Replacement for an `ssl.SSLContext`. Before each connection, load the certificates again if a file has changed.

    All clients share one context, so that producer, consumers and admin client trust the same certificates. Each load
    makes a new context, because a context cannot remove a trusted certificate.
    """

    def __init__(self, kafka: KafkaSettings):
        """Load the certificates. Raises UsageError when a certificate cannot be loaded."""
        self._kafka = kafka
        self._files = self._identities()
        self._context = _load(kafka)

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        """Wrap a socket of a new connection."""
        files = self._identities()
        if files != self._files:
            self._files = files
            try:
                self._context = _load(self._kafka)
                log.info("certificates were renewed")
            except UsageError as error:  # a file may be half written; the next change causes another load
                log.warning(
                    "certificates have changed and cannot be loaded; the previous ones stay in use", error=str(error)
                )
        return self._context.wrap_socket(*args, **kwargs)

    def _identities(self) -> list[tuple[int, ...] | None]:
        """Return the files' fingerprints, which change when a file changes."""
        return [_identity(path) for name in CERTIFICATES + KEYS if (path := getattr(self._kafka, name))]


class Password:
    """The SASL password, read again at each call. If its file cannot be read, the previous password is returned."""

    def __init__(self, kafka: KafkaSettings):
        """Read the password. Raises UsageError when it cannot be read."""
        self._kafka = kafka
        try:
            self._password = kafka.password()
        except ValueError as error:
            raise UsageError(f"kafka: {error}") from None

    def __call__(self) -> str | None:
        try:
            self._password = self._kafka.password()
        except ValueError as error:
            log.warning("the password cannot be read again; the previous one stays in use", error=str(error))
        return self._password


# Shared by all clients with the same settings. A client that is opened while a file is replaced uses the values that
# were read before. Pydantic makes frozen settings hashable, which pyright does not know.
certificates: Callable[[KafkaSettings], Certificates] = cache(Certificates)  # pyright: ignore[reportAssignmentType]
password: Callable[[KafkaSettings], Password] = cache(Password)  # pyright: ignore[reportAssignmentType]


def _identity(path: Path) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _load(kafka: KafkaSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=kafka.ssl_cafile)
        context.check_hostname = kafka.ssl_check_hostname
        if kafka.ssl_certfile:
            # Without a password, OpenSSL would ask for the password on the terminal.
            context.load_cert_chain(kafka.ssl_certfile, kafka.ssl_keyfile, kafka.key_password() or "")
    except (OSError, ValueError) as error:
        named = [f"kafka.{name} = {path}" for name in CERTIFICATES if (path := getattr(kafka, name))]
        named += [f"kafka.{name}" for name in KEYS if getattr(kafka, name)]  # the value may be the secret itself
        raise UsageError(f"the certificates of {', '.join(named)} cannot be loaded: {error}") from None
    return context


class _ReadsPassword(SaslMechanism):
    """A SASL mechanism whose `sasl_plain_password` may be a function. Each authentication makes a new object."""

    def __init__(self, **config: Any):
        password = config["sasl_plain_password"]
        super().__init__(**config | {"sasl_plain_password": password() if callable(password) else password})


class _Plain(_ReadsPassword, SaslMechanismPlain):
    pass


class _Scram(_ReadsPassword, SaslMechanismScram):
    pass


register_sasl_mechanism("PLAIN", _Plain, overwrite=True)
for scram in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
    register_sasl_mechanism(scram, _Scram, overwrite=True)
