"""Secrets in text. One function decides what is a secret; what is printed, logged or written into a file goes through it."""

import logging
import re

# a user's name is no secret where users have passwords; elsewhere it may be a token: http://TOKEN@host
_NAMED_USERS = re.compile(r"(?:postgres(?:ql)?|mysql|mariadb|mssql|oracle|sqlite|ssh|sftp)\b", re.I)
# userinfo reaches to the last @ before a blank: an unescaped password may hold @ and /
_USER = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*):(?P<slashes>/{1,2})(?P<user>[^\s\"'<>]*)@")  # a Path loses one slash
_WORDS = r"passw(?:or)?d|passphrase|pwd|token|secret|credentials?|(?:api|access|secret|private)[-_]?key|auth"
# a value that a shell fills in, such as $HF_TOKEN, is no secret
_VALUE = r"(?!\$|\*\*\*)(?P<value>\"[^\"]*\"|'[^']*'|[^\s&;\"'<>,]+)"
_QUERY = re.compile(rf"(?P<name>[?&;][\w.%-]*(?:{_WORDS}|key|sig(?:nature)?)[\w.%-]*=)(?!\*\*\*)[^&;\s\"'<>]+", re.I)
_ASSIGNED = re.compile(rf"(?P<name>(?<![\w?&;.-])(?:--)?[\w.-]*(?:{_WORDS})=){_VALUE}", re.I)
_OPTION = re.compile(rf"(?P<name>(?<!\S)--?[\w-]*(?:{_WORDS})\s+)(?!-){_VALUE}", re.I)
_HEADER = re.compile(r"(?P<name>\bauthorization:\s*\w+\s+|\bbearer\s+(?=\S{16}))(?!\*\*\*)[A-Za-z0-9._~+/=-]+", re.I)


def redact(text: str) -> str:
    """The text with `***` for what is secret.

    Passwords of addresses, and a user's name where it may be a token; fields of queries, variables and options whose names say
    so (`?token=`, `HF_TOKEN=`, `--password`); bearer tokens.
    """
    text = _USER.sub(_hidden, text)
    for pattern in (_QUERY, _ASSIGNED, _OPTION, _HEADER):
        text = pattern.sub(r"\g<name>***", text)
    return text


def has_secret(text: str) -> bool:
    return redact(text) != text


def _hidden(match: re.Match[str]) -> str:
    scheme, slashes, user = match["scheme"], match["slashes"], match["user"]
    name, colon, _ = user.partition(":")
    if colon and "/" not in name:
        return f"{scheme}:{slashes}{name}:***@"
    is_token = "/" not in name and not _NAMED_USERS.match(scheme)
    return f"{scheme}:{slashes}***@" if is_token else match[0]


class RedactingFormatter(logging.Formatter):
    """The format of log files: messages and tracebacks of libraries name addresses as they were given."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))
