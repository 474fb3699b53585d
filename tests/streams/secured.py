"""A broker with a listener for each security protocol, and certificates of its own authority."""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stream_learner.local.broker import HOST, Broker

OPERATOR = "operator"  # may do everything
LEARNER = "learner"  # may do nothing until a test grants it
PASSWORD = "open sesame 100%"
KEY_PASSWORD = "key sesame"
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
PROTOCOLS = ("SASL_PLAINTEXT", "SASL_SSL", "SSL")

# The extensions that a strict verifier requires of each certificate.
EXTENSIONS = """\
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:true
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[broker]
basicConstraints = CA:false
subjectAltName = IP:127.0.0.1
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[client]
basicConstraints = CA:false
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""

PROPERTIES = f"""
sasl.enabled.mechanisms={",".join(MECHANISMS)}
ssl.keystore.type=PEM
ssl.truststore.type=PEM
listener.name.ssl.ssl.client.auth=required
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS;User:CN=client;User:{OPERATOR}
"""
SCRAM_USERS = [
    f'--add-scram={mechanism}=[name={user},password="{PASSWORD}"]'
    for mechanism in MECHANISMS[1:]
    for user in (OPERATOR, LEARNER)
]
PLAIN_LOGIN = "org.apache.kafka.common.security.plain.PlainLoginModule required"
SCRAM_LOGIN = "org.apache.kafka.common.security.scram.ScramLoginModule required"


def make_properties(folder: Path, ports: dict[str, int]) -> str:
    """Return the broker's listeners and their security settings. The certificates are in `folder`."""
    listeners = ",".join(f"{protocol}://{HOST}:{port}" for protocol, port in ports.items())
    protocols = ",".join(f"{protocol}:{protocol}" for protocol in ports)
    users = " ".join(f'user_{user}="{PASSWORD}"' for user in (OPERATOR, LEARNER))
    logins = {m: f"{PLAIN_LOGIN} {users};" if m == "PLAIN" else f"{SCRAM_LOGIN};" for m in MECHANISMS}
    lines = [
        f"listeners=PLAINTEXT://{{host}}:{{port}},CONTROLLER://{{host}}:{{controller_port}},{listeners}",
        f"listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,{protocols}",
        f"ssl.keystore.location={folder}/broker-chain.pem",
        f"ssl.truststore.location={folder}/authority.pem",
        *(
            f"listener.name.{protocol.lower()}.{mechanism.lower()}.sasl.jaas.config={login}"
            for protocol in ("SASL_PLAINTEXT", "SASL_SSL")
            for mechanism, login in logins.items()
        ),
    ]
    return PROPERTIES + "\n".join(lines)


def make_certificates(folder: Path) -> None:
    """Make an authority and certificates of a broker (127.0.0.1) and a client. The client's key has a password."""
    (folder / "extensions.cnf").write_text(EXTENSIONS)
    _certificate(folder, "authority")
    _certificate(folder, "broker", "-CA", "authority.pem", "-CAkey", "authority.key")
    _certificate(
        folder, "client", "-CA", "authority.pem", "-CAkey", "authority.key", "-passout", f"pass:{KEY_PASSWORD}"
    )
    chain = (folder / "broker.key").read_text() + (folder / "broker.pem").read_text()
    (folder / "broker-chain.pem").write_text(chain)


def _certificate(folder: Path, name: str, *options: str) -> None:
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-keyout", f"{name}.key"]
    if "-passout" not in options:
        key.append("-noenc")
    what = [
        "-config",
        "extensions.cnf",
        "-extensions",
        name,
        "-subj",
        f"/CN={name}",
        "-days",
        "2",
        "-out",
        f"{name}.pem",
    ]
    subprocess.run(["openssl", "req", "-x509", *key, *what, *options], cwd=folder, check=True, capture_output=True)


@dataclass
class Secured:
    """The broker, what clients need for each of its listeners, and where their files are."""

    broker: Broker
    folder: Path
    ports: dict[str, int]

    def kafka(self, protocol: str, mechanism: str | None = None, **changes: Any) -> dict[str, Any]:
        """Return `[kafka]` settings of a user with all rights. `changes` break them; None unsets one."""
        settings: dict[str, Any] = {
            "bootstrap_servers": f"{HOST}:{self.ports[protocol]}",
            "security_protocol": protocol,
        }
        if mechanism:
            settings |= {
                "sasl_mechanism": mechanism,
                "sasl_username": OPERATOR,
                "sasl_password_file": str(self.folder / "password"),
            }
        if protocol.endswith("SSL"):
            settings["ssl_cafile"] = str(self.folder / "authority.pem")
        if protocol == "SSL":
            settings |= {
                "ssl_certfile": str(self.folder / "client.pem"),
                "ssl_keyfile": str(self.folder / "client.key"),
                "ssl_key_password_file": str(self.folder / "key-password"),
            }
        return {name: value for name, value in (settings | changes).items() if value is not None}
