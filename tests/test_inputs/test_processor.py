"""What the processor can do, as the system tells it."""

from pathlib import Path

import pytest

from ddgd_ray.inputs.processor import emulates_bfloat16


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu sse2 avx512f avx512_bf16\n", False),
        ("processor\t: 0\nflags\t\t: fpu sse2 avx2\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd\n", True),
        ("", False),
    ],
)
def test_bfloat16_is_emulated_where_the_flags_lack_it(tmp_path: Path, text: str, expected: bool) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert emulates_bfloat16(tmp_path / "cpuinfo") is expected


def test_a_system_that_does_not_tell_counts_as_able(tmp_path: Path) -> None:
    assert not emulates_bfloat16(tmp_path / "none")
