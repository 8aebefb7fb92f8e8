"""Text without the passwords and tokens of the addresses in it: what is printed or logged may end up anywhere."""

import logging
import re

# userinfo reaches to the last @ before a blank: an unescaped password may hold @ and /
_USER = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*)://(?P<user>[^\s\"'<>]*)@")
_SECRET = re.compile(
    r"(?P<name>[?&;][\w.-]*(?:passw(?:or)?d|pwd|token|secret|key|signature|credential)[\w.-]*=)[^&;\s\"'<>]+", re.I
)


def redact(text: str) -> str:
    """`postgresql://u:***@host/db`; the name alone is hidden too where it may be a token (http), and so are secret fields of a
    query."""
    return _SECRET.sub(r"\g<name>***", _USER.sub(_hidden, text))


def _hidden(match: re.Match[str]) -> str:
    scheme, user = match["scheme"], match["user"]
    name, colon, _ = user.partition(":")
    if colon and "/" not in name:
        return f"{scheme}://{name}:***@"
    return f"{scheme}://***@" if scheme.lower().startswith("http") and "/" not in name else match[0]


class RedactingFormatter(logging.Formatter):
    """For log files: messages and tracebacks of libraries name addresses as they were given."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))
