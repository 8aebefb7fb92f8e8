"""Names and curves as a tracking server takes them."""

import pytest

from ddgd_ray.tracking.names import MAX_KEY, cleaned, step_of, thinned


@pytest.mark.parametrize("name", ["é:ß@", "../../x", "/a", "a//b", "x" * 300, "", "it's", "a\nb", "."])
def test_a_name_that_a_server_refuses_is_cleaned_and_stays_different_from_others(name: str) -> None:
    from mlflow.utils.validation import _validate_metric_name, _validate_param_name, _validate_tag_name

    found = cleaned(name)
    assert len(found) <= MAX_KEY
    assert "'" not in found
    assert found != cleaned(f"{name}?")
    for accepts in (_validate_metric_name, _validate_param_name, _validate_tag_name):
        accepts(found)


@pytest.mark.parametrize("name", ["test/convnet/ipc10", "memory_real.pop", "tiny/fifo-s0", "a b"])
def test_a_sound_name_is_left_alone(name: str) -> None:
    assert cleaned(name) == name


def test_a_long_curve_keeps_its_ends_and_no_more_points_than_allowed() -> None:
    points = list(range(1001))
    found = thinned(points)
    assert (len(found), found[0], found[-1]) == (200, 0, 1000)
    assert len(set(found)) == 200
    assert thinned(points[:200]) == points[:200]


def test_a_picture_is_shown_at_the_last_number_of_its_name() -> None:
    assert step_of("real-class3-step-00050") == ("real-class3", 50)
    assert step_of("gen") == ("gen", 0)
    assert step_of("12") == ("picture", 12)
