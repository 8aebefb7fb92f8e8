"""Tables: seeds are counted as they should be, and nothing is claimed that n does not carry."""

import csv
import io
import statistics
from typing import Any

import pytest

from ddgd_ray.report.results import Row, Stat, over_seeds
from ddgd_ray.report.tables import arm_table, csv_table, grid_table, in_order_of, selection_note

VARY = {"a.pop": ["max", "fifo"], "b.pop": ["max", "fifo"]}


def rows() -> list[Row]:
    """2 x 2 arms, 3 seeds, 2 classifier seeds; accuracy is readable from the arm."""
    found = []
    for first, a in enumerate(VARY["a.pop"]):
        for second, b in enumerate(VARY["b.pop"]):
            for seed in range(3):
                for evaluate_seed in range(2):
                    value = 0.5 + 0.1 * first + 0.01 * second + 0.001 * seed + 0.1 * evaluate_seed
                    params = {"a.pop": a, "b.pop": b}
                    metrics = {"val_top1": value - 0.2, "top1_last": value, "top1_best": value + 0.01}
                    found.append(Row(f"{a}_{b}", params, False, seed, "net", 20, evaluate_seed, metrics))
    return found


def spec(**changes: Any) -> dict[str, Any]:
    return {"objective": {"metric": "val_top1", "direction": "maximize"}, "evaluate": {"ipc": [20]}, **changes}


def test_evaluators_are_averaged_inside_a_seed_before_seeds_are_compared() -> None:
    stat = over_seeds([row for row in rows() if row.arm == "max_max"], "top1_last")
    per_seed = [0.55 + 0.001 * seed for seed in range(3)]
    assert stat is not None
    assert stat.n == 3
    assert stat.mean == pytest.approx(statistics.fmean(per_seed))
    assert stat.std == pytest.approx(statistics.stdev(per_seed))


def test_one_seed_has_no_spread() -> None:
    stat = over_seeds([row for row in rows() if row.seed == 0], "top1_last")
    assert stat is not None
    assert stat.std is None
    assert str(Stat(0.5, None, 1)) == "0.500 (n=1)"


def test_the_grid_has_the_first_field_down_and_the_second_across() -> None:
    lines = grid_table(rows(), VARY).splitlines()
    assert lines[0] == "| a.pop \\ b.pop | max | fifo |"
    assert lines[3].startswith("| fifo | 0.651 ± 0.001 (n=3) | 0.661")


def test_a_cell_without_results_says_so() -> None:
    lines = grid_table([row for row in rows() if row.arm != "fifo_max"], VARY).splitlines()
    assert lines[3].startswith("| fifo | - | 0.661")


def test_arms_stand_in_the_order_of_the_sweep_file() -> None:
    sizes = [Row(str(size), {"size": size}, False, 0, "net", 20, 0, {"top1_last": 0.5}) for size in (128, 16, 64)]
    lines = arm_table(in_order_of({"size": [16, 64, 128]}, sizes), ["net"]).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| 16", "| 64", "| 128"]


def test_controls_stand_last_and_are_labelled() -> None:
    control = Row("random_real", {}, True, 0, "net", 20, 0, {"top1_last": 0.9, "val_top1": 0.9})
    lines = arm_table([control, *rows()], ["net"]).splitlines()
    assert lines[-1].startswith("| random_real (control) |")


def test_selection_looks_at_validation_and_never_at_controls() -> None:
    control = Row("random_real", {}, True, 0, "net", 20, 0, {"top1_last": 0.99, "val_top1": 0.99})
    misleading = [Row("max_max", {}, False, seed, "net", 20, 9, {"top1_last": 1.0}) for seed in range(3)]
    note = selection_note(spec(), [control, *rows(), *misleading])
    assert "**fifo_fifo**" in note
    assert "the test images chose nothing" in note


def test_choosing_on_the_test_images_is_called_an_oracle() -> None:
    assert "an oracle" in selection_note(spec(objective={"metric": "top1_best", "direction": "maximize"}), rows())


def test_few_seeds_carry_no_claim_of_significance() -> None:
    assert "no claim of significance is possible" in selection_note(spec(), rows())


def test_the_csv_has_every_evaluation_and_nothing_averaged() -> None:
    lines = list(csv.DictReader(io.StringIO(csv_table(rows()))))
    assert len(lines) == 24
    assert float(lines[0]["top1_last"]) == rows()[0].metrics["top1_last"]
    assert lines[0]["a.pop"] == "max"
