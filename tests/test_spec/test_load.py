"""Strict YAML: what is read, what is refused, and whether the message says where and what to do."""

from pathlib import Path
from typing import Any

import pytest

from ddgd_ray.errors import SpecError, SpecErrors
from ddgd_ray.spec.check import check
from ddgd_ray.spec.load import MAX_BYTES, Document, nearest, parse, parse_value, read
from ddgd_ray.spec.stages import MemorySpec


def refusal(text: str) -> str:
    with pytest.raises(SpecError) as caught:
        parse(text, "a.yaml")
    return str(caught.value)


def problems_of(text: str) -> list[str]:
    """Messages of a memory section, the smallest spec with a literal and bounds."""
    errors: list[SpecError] = []
    check(MemorySpec, parse(text, "a.yaml"), (), errors)
    return [str(error) for error in errors]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-3", 0.002),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("-7", -7),
        ("64", 64),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("off", "off"),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ('"64"', "64"),
        ("'true'", "true"),
        ("[1, a, 2.5]", (1, "a", 2.5)),
        ("{a: 1}", {"a": 1}),
    ],
)
def test_a_scalar_has_the_type_yaml_1_2_gives_it(text: str, value: Any) -> None:
    found = parse_value(text, "--set x")
    assert found == value
    assert type(found) is type(value)


def test_every_value_knows_its_line() -> None:
    document = parse("a: 1\nb:\n  c: 2\n  d: [3,\n    4]\n", "a.yaml")
    assert document.where(("b", "c")) == "a.yaml:3 b.c"
    assert document.where(("b", "d", 1)) == "a.yaml:5 b.d.1"
    assert document.where(("b", "absent")) == "a.yaml:2 b.absent"
    assert document.line(()) == "a.yaml:1"


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", "a.yaml:3", "'a' is given twice (lines 1 and 3)"),
        ("a:\n  b: 1\n  b: 2\n", "a.yaml:3", "'b' is given twice (lines 2 and 3)"),
        ("a: !!python/object/apply:os.system [ls]\n", "a.yaml:1", "tags are not allowed: !!python/object/apply:os.system"),
        ("x: 1\na: !!int '5'\n", "a.yaml:2", "tags are not allowed: !!int"),
        ("a: !!set {b}\n", "a.yaml:1", "tags are not allowed: !!set"),
        ("a: !mine 5\n", "a.yaml:1", "tags are not allowed: !mine"),
        ("a: 1\nb: &here 2\n", "a.yaml:2", "anchors and aliases are not supported"),
        ("a: 1\nb: *here\n", "a.yaml:2", "anchors and aliases are not supported"),
        ("a: &a [*a]\n", "a.yaml:1", "anchors and aliases are not supported"),
        ("a: 1\n<<: {b: 2}\n", "a.yaml:2", "merge keys are not supported"),
        ("a:\n\tb: 1\n", "a.yaml:2:1", "found character '\\t'"),
        ("a: [1, 2\n", "a.yaml:2:1", "not valid YAML"),
        ("a: 1\n---\nb: 2\n", "a.yaml:2:1", "another document"),
        ("? [a]\n: 1\n", "a.yaml:1", "a key must be a name"),
        ("a: 1\nb: \u00a00.1\n", "a.yaml:2", "invisible character U+00A0 in column 4"),
        ("a: 1\u200b\n", "a.yaml:1", "invisible character U+200B in column 5"),
        ("a: 1\x07\n", "a.yaml:1", "invisible character U+0007 in column 5"),
        ("- a\n- b\n", "a.yaml:1", "expected a mapping (`name: value` lines) at the top, got a list"),
        ("hello\n", "a.yaml:1", "at the top, got text"),
        ("", "a.yaml:1", "at the top, got an empty file"),
        ("# nothing but this\n", "a.yaml:1", "at the top, got an empty file"),
        ("a: " + "[" * 5000 + "]" * 5000, "a.yaml:1", "nested deeper than"),
        ("a: " + "{a: " * 5000 + "}" * 5000, "a.yaml:1", "nested deeper than"),
    ],
)
def test_a_malformed_file_is_refused_with_its_line(text: str, place: str, words: str) -> None:
    message = refusal(text)
    assert message.startswith(f"error[yaml]: {place}: ")
    assert words in message


def test_a_syntax_error_shows_the_line_and_a_mark() -> None:
    assert "\n    \tb: 1\n    ^\n" in refusal("a:\n\tb: 1\n")


def test_all_problems_of_the_form_are_told_at_once() -> None:
    with pytest.raises(SpecErrors) as caught:
        parse("a: 1\na: 2\nb:\n  c: 1\n  c: 2\n<<: {d: 1}\n", "a.yaml")
    assert [error.where for error in caught.value.errors] == ["a.yaml:2", "a.yaml:5", "a.yaml:6"]


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    document = read(path)
    assert document.data == {"a": 1, "b": 2}
    assert document.line(("b",)) == f"{path}:2"


@pytest.mark.parametrize(
    "raw",
    ["a: 1\n".encode("utf-16"), "a: 1\n".encode("utf-16-le"), bytes(range(256)), b"a: \xe4\n"],
    ids=["utf-16", "utf-16 without a mark", "binary", "latin-1"],
)
def test_other_encodings_are_named_as_the_problem(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(raw)
    with pytest.raises(SpecError, match=r"a\.yaml: is not UTF-8 text\n  help: save it as UTF-8"):
        read(path)


def test_a_file_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"#" * MAX_BYTES)
    with pytest.raises(SpecError, match="at the top"):
        read(path)
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(SpecError, match=f"has more than {MAX_BYTES} bytes"):
        read(path)


def test_a_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "memory.yaml").write_text("a: 1\n")
    with pytest.raises(SpecError, match=r"there is no such file\n  help: did you mean .*memory\.yaml\?"):
        read(tmp_path / "memroy.yaml")


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read: is a folder"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("yes", "text 'yes'"),
        ("64.5", "number 64.5"),
        ('"64"', "text '64'"),
        ("1_000", "text '1_000'"),
        ("true", "boolean True"),
    ],
)
def test_only_an_integer_is_an_integer(written: str, shown: str) -> None:
    (message,) = problems_of(f"pop: fifo\nsize: {written}\n")
    assert message.startswith(f"error[wrong-type]: a.yaml:2 size: expected an integer, got {shown}")


@pytest.mark.parametrize("written", ['"64"', "1_000"])
def test_quotes_and_underscores_are_pointed_at(written: str) -> None:
    (message,) = problems_of(f"size: {written}\n")
    assert "help: remove the quotes or underscores" in message


def test_a_wrong_name_gets_the_choices_and_the_nearest() -> None:
    (message,) = problems_of("pop: max_similarty\n")
    assert "expected 'max_similarity', 'min_similarity', 'fifo'" in message
    assert message.endswith("got text 'max_similarty'\n  help: did you mean max_similarity?")


def test_an_unknown_key_gets_the_known_ones_and_the_nearest() -> None:
    (message,) = problems_of("sise: 64\n")
    assert message == (
        "error[unknown-key]: a.yaml:1 sise: unknown key 'sise'; known here: max_age, pop, size\n  help: did you mean size?"
    )


def test_a_bound_is_told_with_the_value() -> None:
    (message,) = problems_of("size: 1\n")
    assert message == "error[out-of-range]: a.yaml:1 size: expected a number >= 2, got integer 1\n  help: try 64"


def test_all_wrong_fields_are_told_at_once() -> None:
    messages = problems_of("pop: oldest\nsize: many\nmax_age: -1\nsise: 3\n")
    assert sorted(message.split()[1] for message in messages) == ["a.yaml:1", "a.yaml:2", "a.yaml:3", "a.yaml:4"]


def test_a_section_that_is_no_mapping_is_refused() -> None:
    errors: list[SpecError] = []
    assert check(MemorySpec, parse("memory: 5\n", "a.yaml"), ("memory",), errors) is None
    assert "a.yaml:1 memory: expected a mapping, got integer 5" in str(errors[0])


def test_replacing_a_value_leaves_the_document_as_it_was() -> None:
    document = parse("a: {b: 1}\n", "a.yaml")
    changed = document.replaced({("a", "b"): 2, ("c", "d"): 3}, {("a", "b"): "--set", ("c", "d"): "--set"})
    assert changed.data == {"a": {"b": 2}, "c": {"d": 3}}
    assert document.data == {"a": {"b": 1}}
    assert changed.where(("a", "b")) == "--set a.b"


def test_what_lies_below_a_replaced_value_moves_with_it() -> None:
    document = parse("a: [1,\n  2]\nb: 5\n", "a.yaml")
    changed = document.replaced({("a",): (3, 4), ("b", "c"): 6}, {("a",): "--set", ("b", "c"): "--set"})
    assert changed.line(("a", 1)) == "--set"
    assert changed.line(("b",)) == "--set"


def test_the_nearest_of_nothing_is_a_question_mark() -> None:
    assert nearest("a", []) == "?"
    assert nearest("lambda_gen_wieght", ["lambda_g", "lambda_r", "steps"]) == "lambda_g"


def test_a_document_without_places_still_names_its_file() -> None:
    assert Document({}, "a.yaml").where(("b",)) == "a.yaml b"
