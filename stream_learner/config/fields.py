"""Base class of the sections, and types of fields that several sections share."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer

MIB = 1024 * 1024
# Kafka's time-outs are int32, in milliseconds.
MAX_KAFKA_S = (2**31 - 1) // 1000


def _not_a_parent(text: str) -> str:
    if text in (".", ".."):
        raise ValueError("must not be '.' or '..': these are names of folders, and Kafka refuses them")
    return text


# Kafka's rule for topic names. Run ids and prefixes become parts of them, and run ids name folders.
KafkaName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9._-]{1,200}$"), AfterValidator(_not_a_parent)]
KAFKA_NAME = "must be 1 to 200 letters (a to z, A to Z), digits, dots, hyphens and underscores"


def _as_shown(path: Path) -> str:
    return str(path) if path.is_file() else "***"  # the text may be a password in the wrong place


FileName = Annotated[Path, PlainSerializer(_as_shown, when_used="json")]


class Section(BaseModel):
    """Settings of one subject: a table of the settings file."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


def read_secret(path: Path, setting: str) -> str:
    """Return the text of a secret file without its trailing newline.

    Raises ValueError when the file cannot be read. The message names `setting`, not the path: if the setting holds the
    secret itself, the path is the secret.
    """
    try:
        return path.read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        raise ValueError(f"cannot read the file that {setting} names: {error.strerror}") from None
    except ValueError:  # not UTF-8, or NUL in the name
        raise ValueError(f"the file that {setting} names is not UTF-8 text") from None
