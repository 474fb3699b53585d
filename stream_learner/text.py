"""Make text from outside safe for terminals and logs."""

import re

# Credentials in a URL anywhere in a message: `user:password@`, and the query, which may hold a signature. A URL that
# was handled as a path has lost a slash. A password may contain a slash, as a bucket's secret key does. `host:port/` is
# not a password.
USERINFO = re.compile(r"(?<=:/)(/?)(?:[^\s/?#\"'<>]+|[^\s/?#\"'<>:@]+:(?!\d+/)[^\s?#\"'<>@]+)@")
QUERY = re.compile(r"(?<=://)([^\s?\"'<>]*)\?[^\s\"'<>]+")


def printable(text: str) -> str:
    """Return text for one line of a terminal or log.

    Credentials in URLs become `***`. Characters that do not print become `\\uXXXX`, also inside JSON: control
    characters (C0, C1), bidirectional and other formatting characters, line separators, lone surrogates.
    """
    text = without_credentials(text)
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def printable_lines(text: str) -> str:
    """Return text of several lines, each made `printable`."""
    return "\n".join(map(printable, text.split("\n")))


def without_credentials(text: str) -> str:
    """Return the text with `***` in place of user, password and query of each URL."""
    if ":/" not in text:
        return text
    return QUERY.sub(r"\1?***", USERINFO.sub(r"\1***@", text))


def escape_unencodable(error: UnicodeError) -> tuple[str, int]:
    """Escape characters that the encoding cannot express, as `printable` does. Handler for `codecs.register_error`."""
    assert isinstance(error, UnicodeEncodeError)
    return "".join(map(_escaped, error.object[error.start : error.end])), error.end


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))
