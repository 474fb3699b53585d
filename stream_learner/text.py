"""Text from outside, made safe for terminals and logs."""

import re

# user:password@ and ?signature of a URL, wherever it stands in a message; as a path a URL has lost a slash.
# A password may hold a slash, as secret keys of buckets do; `host:port/` is none.
USERINFO = re.compile(r"(?<=:/)(/?)(?:[^\s/?#\"'<>]+|[^\s/?#\"'<>:@]+:(?!\d+/)[^\s?#\"'<>@]+)@")
QUERY = re.compile(r"(?<=://)([^\s?\"'<>]*)\?[^\s\"'<>]+")


def printable(text: str) -> str:
    """Return text for one line of a terminal or log.

    Credentials in URLs become `***`. What does not print becomes `\\uXXXX`, also inside JSON: control characters (C0,
    C1), bidirectional and other formatting characters, separators of lines, lone surrogates.
    """
    text = without_credentials(text)
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def printable_lines(text: str) -> str:
    """Return `printable` text of several lines."""
    return "\n".join(map(printable, text.split("\n")))


def without_credentials(text: str) -> str:
    """Return text in which user, password and query of each URL are `***`."""
    if ":/" not in text:
        return text
    return QUERY.sub(r"\1?***", USERINFO.sub(r"\1***@", text))


def escape_unencodable(error: UnicodeError) -> tuple[str, int]:
    """Escape likewise what an encoding lacks; a handler for `codecs.register_error`."""
    assert isinstance(error, UnicodeEncodeError)
    return "".join(map(_escaped, error.object[error.start : error.end])), error.end


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))
