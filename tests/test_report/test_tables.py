"""Tables: seeds are counted as they should be, and nothing is claimed that n does not carry."""

import csv
import io
import statistics
from collections.abc import Callable

import pytest

from ddgd_ray.report.build import latex_report, markdown_report, result_tables
from ddgd_ray.report.notes import selection_note
from ddgd_ray.report.render import Table, latex, markdown
from ddgd_ray.report.tables import arm_table, averaged_csv, comparison_table, csv_table, grid_table
from ddgd_ray.run.reading import Run
from ddgd_ray.run.results import Row, Stat, in_order_of, over_seeds
from tests.run_parts import NETWORK

Rows = Callable[..., Row]
VARY = {"a.pop": ("max", "fifo"), "b.pop": ("max", "fifo")}


@pytest.fixture
def rows(row: Rows) -> list[Row]:
    """2 x 2 arms, 3 seeds, 2 classifier seeds; accuracy is readable from the arm."""
    found = []
    for first, a in enumerate(VARY["a.pop"]):
        for second, b in enumerate(VARY["b.pop"]):
            for seed in range(3):
                for evaluate_seed in range(2):
                    value = 0.5 + 0.1 * first + 0.01 * second + 0.001 * seed + 0.1 * evaluate_seed
                    params = {"a.pop": a, "b.pop": b}
                    metrics = {"val_top1": value - 0.2, "top1_last": value, "top1_best": value + 0.01}
                    found.append(row(f"{a}_{b}", seed, params=params, evaluate_seed=evaluate_seed, **metrics))
    return found


def lines_of(table: Table | None) -> list[str]:
    """Of the table alone: header, rule, rows."""
    assert table is not None
    return [line for line in markdown(table).splitlines() if line.startswith("|")]


def test_evaluators_are_averaged_inside_a_seed_before_seeds_are_compared(rows: list[Row]) -> None:
    stat = over_seeds([row for row in rows if row.arm == "max_max"], "top1_last")
    per_seed = [0.55 + 0.001 * seed for seed in range(3)]
    assert stat is not None
    assert stat.n == 3
    assert stat.mean == pytest.approx(statistics.fmean(per_seed))
    assert stat.std == pytest.approx(statistics.stdev(per_seed))


def test_one_seed_has_no_spread(rows: list[Row]) -> None:
    stat = over_seeds([row for row in rows if row.seed == 0], "top1_last")
    assert stat is not None
    assert stat.std is None
    assert str(Stat(0.5, None, 1)) == "0.500 (n=1)"


def test_the_grid_has_the_first_field_down_and_the_second_across(rows: list[Row]) -> None:
    lines = lines_of(grid_table(rows, VARY))
    assert lines[0] == "| a.pop \\ b.pop | max | fifo |"
    assert lines[3].startswith("| fifo | 0.651 ± 0.001 (n=3) | 0.661")


def test_a_cell_without_results_says_so(rows: list[Row]) -> None:
    lines = lines_of(grid_table([row for row in rows if row.arm != "fifo_max"], VARY))
    assert lines[3].startswith("| fifo | - | 0.661")


def test_a_grid_of_which_only_finalists_were_tested_shows_validation(row: Rows, rows: list[Row]) -> None:
    untested = [row(found.arm, found.seed, params=found.params, val_top1=0.4) for found in rows if found.arm != "max_max"]
    table = grid_table([*[found for found in rows if found.arm == "max_max"], *untested], VARY)
    assert table is not None
    assert table.title.startswith("Validation accuracy")


def test_arms_stand_in_the_order_of_the_sweep_file(row: Rows) -> None:
    sizes = [row(str(size), params={"size": size}, top1_last=0.5) for size in (128, 16, 64)]
    lines = lines_of(arm_table(in_order_of({"size": [16, 64, 128]}, sizes), [NETWORK]))
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| 16", "| 64", "| 128"]


def test_controls_stand_last_and_are_labelled(row: Rows, rows: list[Row]) -> None:
    control = row("random_real", is_control=True, top1_last=0.9, val_top1=0.9)
    ceiling = row("full_data", is_control=True, ipc=0, top1_last=0.99)
    lines = lines_of(arm_table([ceiling, control, *rows], [NETWORK]))
    assert lines[-2].startswith("| random_real (control) |")
    assert lines[-1] == "| full_data (ceiling) | 1 | - | 0.990 | - | - | 0.990 |"


def test_networks_have_columns_and_the_metrics_are_means_over_them(row: Rows) -> None:
    rows = [row(network=network, top1_last=value) for network, value in (("a", 0.4), ("b", 0.6))]
    assert lines_of(arm_table(rows, ["a", "b"]))[2] == "| arm | 1 | - | 0.500 | - | - | 0.400 | 0.600 |"


def test_a_cell_of_fewer_seeds_than_its_line_says_so(row: Rows) -> None:
    rows = [row(seed=seed, val_top1=0.5) for seed in range(3)] + [row(seed=0, evaluate_seed=1, top1_last=0.7)]
    assert lines_of(arm_table(rows, [NETWORK]))[2].startswith("| arm | 3 | 0.500 ± 0.000 | 0.700 (n=1) |")


def test_the_best_is_bold_and_with_three_seeds_all_others_are_underlined(rows: list[Row]) -> None:
    table = arm_table(rows, [NETWORK])
    lines = lines_of(table)
    assert "**0.661 ± 0.001**" in lines[5]
    assert all(line.count("<u>") == 4 for line in lines[2:5])
    assert "no claim of significance is possible (6 are the least)" in table.note


def test_where_only_validation_was_measured_test_columns_are_empty(row: Rows) -> None:
    rows = [row(arm, seed, val_top1=0.5 + 0.1 * (arm == "b")) for arm in "ab" for seed in range(3)]
    table = arm_table(rows, [NETWORK])
    assert lines_of(table)[3] == "| b | 3 | **0.600 ± 0.000** | - | - | - | **0.600 ± 0.000** |"
    assert lines_of(comparison_table(rows, "a"))[3] == "| b | 0.600 ± 0.000 | - | +0.1000 ± 0.0000 | - | 3 | - | - |"


def test_a_comparison_has_paired_differences_and_p_values_from_six_seeds_on(row: Rows) -> None:
    rows = [
        row(arm, seed, top1_last=0.5 + 0.01 * seed + (arm == "b") * (0.02 + 0.001 * seed)) for arm in "ab" for seed in range(6)
    ]
    table = comparison_table(rows, "a")
    (line,) = [line for line in lines_of(table) if line.startswith("| b |")]
    assert line.endswith("| 6 | 0.0312 | 0.0312 |")
    assert "+0.0225 ± 0.0019" in line
    assert "Distinguishable from a by test, last step (n = 6): b." in table.note


def test_a_table_never_mixes_protocols(row: Rows, run_of: Callable[..., Run]) -> None:
    rows = [row(arm, 0, protocol=label, top1_last=0.5) for arm in "ab" for label in ("quick", "long")]
    tables = result_tables(run_of(rows))
    assert [table.title.rpartition(" ")[2] for table in tables] == ["quick", "quick", "long", "long"]
    with pytest.raises(AssertionError, match="mixes"):
        arm_table(rows, [NETWORK])


def test_the_report_names_every_protocol_and_counts_the_test_images_readers(
    rows: list[Row], run_of: Callable[..., Run]
) -> None:
    run = run_of(rows, vary=VARY)
    text = markdown_report(run, result_tables(run))
    assert "protocol quick;" in text
    assert "## Arms, 20 images per class, protocol quick" in text
    assert "Test images were read by 24 trained classifiers." in text


def test_a_run_without_results_has_a_report_all_the_same(run_of: Callable[..., Run]) -> None:
    assert "No arm has finished." in markdown_report(run_of([]), result_tables(run_of([])))


def test_latex_has_every_table_of_the_report(rows: list[Row], run_of: Callable[..., Run]) -> None:
    run = run_of(rows, vary=VARY)
    tables = result_tables(run)
    text = latex_report(run, tables)
    assert text.count(r"\begin{table}") == len(tables) == 5  # grid, arms, against the reference, main effects, interactions
    assert r"max\_max" in text
    assert all(latex(table) in text for table in tables)


def test_selection_looks_at_validation_and_never_at_controls(row: Rows, rows: list[Row], run_of: Callable[..., Run]) -> None:
    control = row("random_real", is_control=True, top1_last=0.99, val_top1=0.99)
    misleading = [row("max_max", seed, evaluate_seed=9, top1_last=1.0) for seed in range(3)]
    note = selection_note(run_of([control, *rows, *misleading], vary=VARY))
    assert "**fifo_fifo**" in note
    assert "the test images chose nothing" in note


def test_choosing_on_the_test_images_is_called_an_oracle(rows: list[Row], run_of: Callable[..., Run]) -> None:
    assert "an oracle" in selection_note(run_of(rows, objective={"metric": "top1_best"}))


def test_few_seeds_carry_no_claim_of_significance(rows: list[Row], run_of: Callable[..., Run]) -> None:
    assert "no claim of significance is possible" in selection_note(run_of(rows))


def test_enough_seeds_say_which_arms_differ_from_the_chosen_one(row: Rows, run_of: Callable[..., Run]) -> None:
    rows = [row(arm, seed, val_top1=0.5 + 0.1 * (arm == "b") + 0.001 * seed) for arm in "ab" for seed in range(6)]
    note = selection_note(run_of(rows))
    assert note.endswith("not measured. Distinguishable from b by val_top1 (n = 6): a.")


def test_the_csv_has_every_evaluation_and_nothing_averaged(rows: list[Row]) -> None:
    lines = list(csv.DictReader(io.StringIO(csv_table(rows))))
    assert len(lines) == 24
    assert float(lines[0]["top1_last"]) == rows[0].metrics["top1_last"]
    assert lines[0]["a.pop"] == "max"
    assert (lines[0]["protocol"], lines[0]["key"]) == ("quick", rows[0].key)


def test_the_averaged_csv_has_a_line_for_each_arm_network_and_metric(rows: list[Row]) -> None:
    lines = list(csv.DictReader(io.StringIO(averaged_csv(rows, [NETWORK]))))
    assert len(lines) == 4 * 2 * 3  # arms; net and all; metrics measured
    (found,) = [line for line in lines if (line["arm"], line["network"], line["metric"]) == ("fifo_max", "all", "top1_last")]
    assert float(found["mean"]) == pytest.approx(0.651)
    assert float(found["ci_low"]) < 0.651 < float(found["ci_high"])
    assert (found["control"], found["n_shared"], found["p_holm"]) == ("max_max", "3", "")  # no p of three seeds
    assert float(found["difference"]) == pytest.approx(0.1)
