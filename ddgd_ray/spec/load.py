"""Documents of strict YAML 1.2: every value with the line it stands on, and every error at once.

Refused: duplicate keys, tags, anchors and aliases, several documents, invisible characters, files over 1 MB, deep nesting.
"""

import difflib
import errno
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from ddgd_ray.errors import SpecError, SpecErrors
from ddgd_ray.plain_files import read_bytes

Path_ = tuple[str | int, ...]
MAX_BYTES = 1_000_000
MAX_DEPTH = 20

# YAML 1.2 core schema; 1_000, 0o17-like and sexagesimal forms of 1.1 stay text and are refused where a number is due
_INT = re.compile(r"[-+]?[0-9]{1,1000}")  # Python converts no more than 4,300 digits
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_CONSTANTS = {"null": None, "~": None, "": None, "true": True, "false": False}
_LINE_END = re.compile("\r\n|\r|\n")  # what YAML 1.2 counts as one; str.splitlines knows more
_NON_FINITE = re.compile(r"[-+]?\.(inf|nan)", re.IGNORECASE)
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u00a0\u1680\u2000-\u200f\u2028-\u202f\u205f-\u2064\u3000\ufeff]"
)


@dataclass(frozen=True)
class Document:
    """Plain data (dict, tuple, str, int, float, bool, None) and where each value was written."""

    data: Any
    source: str
    places: Mapping[Path_, str] = field(default_factory=dict)

    def where(self, path: Path_) -> str:
        """`file:line dotted.path` of the value, or of the nearest thing around it."""
        dotted = ".".join(map(str, path))
        return f"{self.line(path)} {dotted}".strip()

    def line(self, path: Path_) -> str:
        """`file:line` of the value, or of the nearest thing around it."""
        lengths = (length for length in range(len(path), -1, -1) if path[:length] in self.places)
        return self.places[path[: next(lengths)]] if path[:0] in self.places else self.source

    def unknown_key(self, path: Path_, known: Iterable[str]) -> SpecError:
        names = sorted(known)
        return SpecError(
            f"unknown key {path[-1]!r}; known here: {', '.join(names)}",
            code="unknown-key",
            where=self.where(path),
            fix=f"did you mean {nearest(str(path[-1]), names)}?",
        )

    def replaced(self, values: Mapping[Path_, Any], places: Mapping[Path_, str] | None = None) -> "Document":
        """A copy with values put in at paths; missing mappings on the way are made."""
        data = _thawed(self.data)
        merged = dict(self.places)
        for path, value in values.items():
            place = (places or {}).get(path, self.source)
            inner = data
            for length, name in enumerate(path[:-1], 1):
                if not isinstance(inner.get(name), dict):
                    inner[name] = {}
                    merged[path[:length]] = place
                inner = inner[name]
            inner[path[-1]] = value
            merged = {old: line for old, line in merged.items() if old[: len(path)] != path} | {path: place}
        return Document(data, self.source, merged)


def _thawed(data: Any) -> Any:
    return {name: _thawed(value) for name, value in data.items()} if isinstance(data, Mapping) else data


def nearest(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    return difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0] if known else "?"


def read(path: Path) -> Document:
    """The mapping in a YAML file. Raises SpecErrors with every problem of its form."""
    try:
        raw = read_bytes(path, MAX_BYTES)
    except FileNotFoundError as err:
        near = nearest(path.name, [other.name for other in path.parent.glob("*.yaml")]) if path.parent.is_dir() else "?"
        hint = f"did you mean {path.parent / near}?" if near != "?" else "give the path of a sweep file, *.yaml"
        raise SpecError("there is no such file", code="missing-file", where=str(path), fix=hint) from err
    except OSError as err:
        fix = "give the path of a readable sweep file, *.yaml"
        code = "yaml" if err.errno == errno.EFBIG else "missing-file"
        raise SpecError(f"cannot be read: {err.strerror}", code=code, where=str(path), fix=fix) from err
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise SpecError("is not UTF-8 text", code="yaml", where=str(path), fix="save it as UTF-8") from err
    if "\0" in text:  # UTF-16 without a mark, or a binary file
        raise SpecError("is not UTF-8 text", code="yaml", where=str(path), fix="save it as UTF-8")
    return parse(text, str(path))


def parse_value(text: str, source: str) -> Any:
    """One value written on a command line, by the rules of the files. source: its name in messages. Raises SpecErrors."""
    if _LINE_END.search(text):
        raise SpecError("the value holds a line break", code="yaml", where=source, fix="give one value in one line")
    if re.search(r"\s#", text) and text.lstrip()[:1] not in "\"'":
        fix = "put the value in quotes of its own: --set 'PATH=\"a #b\"'"
        raise SpecError("what follows ` #` would be a comment in YAML", code="yaml", where=source, fix=fix)
    return parse(f"value: {text}", source).data["value"]


def parse(text: str, source: str) -> Document:
    """The mapping in a YAML text. Raises SpecErrors."""
    errors: list[SpecError] = []
    for number, line in enumerate(_LINE_END.split(text), 1):
        found = _INVISIBLE.search(line)
        if found:
            errors.append(
                SpecError(
                    f"invisible character U+{ord(found.group()):04X} in column {found.start() + 1}",
                    code="yaml",
                    where=f"{source}:{number}",
                    fix="replace it with a plain space" if found.group().isspace() else "remove it, or save the file as UTF-8",
                )
            )
    if errors:
        raise SpecErrors(errors)
    yaml = YAML(typ="rt", pure=True)
    try:
        depth = 0
        for event in yaml.parse(text):
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            refused = _refused(event, depth)
            if refused:
                where = f"{source}:{event.start_mark.line + 1}"
                raise SpecError(refused, code="yaml", where=where, fix="write the plain value in its place")
        node = yaml.compose(text)
    except MarkedYAMLError as err:
        mark = err.problem_mark or err.context_mark
        place = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        lines = text.splitlines()
        shown = f"\n    {lines[mark.line]}\n    {' ' * mark.column}^" if mark and mark.line < len(lines) else ""
        fix = (
            "indent with spaces"
            if "'\\t'" in str(err.problem)
            else "reading stopped here: look at this line and the one before it"
        )
        raise SpecError(f"not valid YAML: {err.problem}{shown}", code="yaml", where=place, fix=fix) from err
    except YAMLError as err:
        raise SpecError(
            f"not valid YAML: {str(err).splitlines()[0]}", code="yaml", where=source, fix="save it as plain UTF-8 text"
        ) from err
    if not isinstance(node, MappingNode):
        raise SpecError(
            f"expected a mapping (`name: value` lines) at the top, got {_kind(node)}",
            code="yaml",
            where=f"{source}:1",
            fix="see ablations/memory.yaml",
        )
    places: dict[Path_, str] = {}
    data = _plain(node, (), source, places, errors)
    if errors:
        raise SpecErrors(errors)
    return Document(data, source, places)


def _refused(event: Any, depth: int) -> str:
    """The problem with a parser event that our files may not hold, or ""."""
    if getattr(event, "anchor", None) is not None:
        return "anchors and aliases are not supported"
    if getattr(event, "tag", None) is not None:
        return f"tags are not allowed: {event.tag.replace('tag:yaml.org,2002:', '!!')}"
    return f"nested deeper than {MAX_DEPTH} levels" if depth > MAX_DEPTH else ""


def _kind(node: Node | None) -> str:
    if node is None or (isinstance(node, ScalarNode) and not node.value):
        return "an empty file"
    return "a list" if isinstance(node, SequenceNode) else "text"


def _plain(node: Node, path: Path_, source: str, places: dict[Path_, str], errors: list[SpecError]) -> Any:
    places.setdefault(path, f"{source}:{node.start_mark.line + 1}")
    if isinstance(node, MappingNode):
        return _mapping(node, path, source, places, errors)
    if isinstance(node, SequenceNode):
        return tuple(_plain(item, (*path, index), source, places, errors) for index, item in enumerate(node.value))
    assert isinstance(node, ScalarNode)
    return node.value if node.style in ('"', "'", "|", ">") else _scalar(node.value)


def _mapping(node: MappingNode, path: Path_, source: str, places: dict[Path_, str], errors: list[SpecError]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, ScalarNode):
            fix = "write NAME: VALUE"
            errors.append(SpecError("a key must be a name", code="yaml", where=f"{source}:{line}", fix=fix))
            continue
        name = key_node.value
        if name == "<<":
            errors.append(
                SpecError("merge keys are not supported", code="yaml", where=f"{source}:{line}", fix="write the keys")
            )
            continue
        if name in result:
            first = places[(*path, name)].rpartition(":")[2]
            errors.append(
                SpecError(
                    f"key {name!r} is given twice (lines {first} and {line})",
                    code="yaml",
                    where=f"{source}:{line}",
                    fix="remove one of the two",
                )
            )
            continue
        places[(*path, name)] = f"{source}:{line}"
        result[name] = _plain(value_node, (*path, name), source, places, errors)
    return result


def _scalar(text: str) -> Any:
    if text.lower() in _CONSTANTS and text in (text.lower(), text.capitalize(), text.upper()):
        return _CONSTANTS[text.lower()]
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) or _NON_FINITE.fullmatch(text):
        return float(re.sub(r"\.(?=[in])", "", text, flags=re.IGNORECASE))
    return text
