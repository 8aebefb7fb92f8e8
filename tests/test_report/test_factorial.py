"""Effects, verdicts and the first sentence, from the rows of a run: the numbers are those of the cells, the words are true."""

import csv
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ddgd_ray.report.build import report_texts, result_tables
from ddgd_ray.report.effect_figures import effect_figures
from ddgd_ray.report.factorial import effect_tables, grid_effects, grid_factors
from ddgd_ray.report.headline import headline, points_up
from ddgd_ray.report.judged import differences_to, reach_of, reference_of, tally, verdict_note, verdicts_of
from ddgd_ray.report.render import Table
from ddgd_ray.run.reading import Run
from ddgd_ray.run.results import Row, by_arm
from ddgd_ray.spec.claims_spec import ClaimsSpec

Rows = Callable[..., Row]
Grid = Callable[..., list[Row]]
Say = Callable[..., str]
REAL, GEN = "finetune.memory_real.pop", "finetune.memory_gen.pop"
POPS = {"max": "max_similarity", "min": "min_similarity", "fifo": "fifo"}
VARY = {REAL: tuple(POPS.values()), GEN: tuple(POPS.values()), "finetune.memory_gen.size": (64,)}
CLAIMS = ClaimsSpec(smallest_effect=0.01)
MIN = POPS["min"]


def default_of(path: str) -> Any:
    return {REAL: "max_similarity", GEN: "max_similarity", "finetune.memory_gen.size": 64}[path]


@pytest.fixture
def grid(row: Rows) -> Callable[..., list[Row]]:
    """grid(seeds, {level of the first field: what it adds}): 3 x 3 cells, two classifier seeds, plain and the ceiling."""

    def build(num_seeds: int, adds: dict[str, float] | None = None, seed: int = 0, spread: float = 0.002) -> list[Row]:
        rng, found = np.random.default_rng(seed), []
        shift = 0.006 * rng.normal(size=num_seeds)
        for real in POPS:
            for gen in POPS:
                for number in range(num_seeds):
                    value = 0.69 + shift[number] + (adds or {}).get(real, 0.0) + spread * rng.normal()
                    params = {REAL: POPS[real], GEN: POPS[gen], "finetune.memory_gen.size": 64}
                    for other in (0, 1):
                        near = value + 0.004 * (other - 0.5)
                        found.append(row(f"{real}_{gen}", number, params=params, evaluate_seed=other, top1_last=near))
        for number in range(num_seeds):
            for other in (0, 1):
                near = 0.69 + shift[number] + spread * rng.normal() + 0.004 * (other - 0.5)
                found.append(row("plain", number, is_control=True, evaluate_seed=other, top1_last=near))
        return [*found, row("full_data", 0, is_control=True, ipc=0, top1_last=0.86)]

    return build


def cells(table: Table, line: str) -> list[str]:
    ((_, found),) = [one for one in table.rows if one[0] == line]
    return [cell.text for cell in found]


def test_a_field_with_one_value_and_a_sweep_of_one_field_are_no_grid() -> None:
    assert list(grid_factors(VARY)) == [REAL, GEN]
    assert grid_factors({"finetune.size": (16, 64, 256)}) == {}
    assert grid_factors({name: tuple(range(30)) for name in ("a", "b")}) == {}  # 900 cells


def test_a_main_effect_is_the_difference_of_the_means_of_its_cells(grid: Grid) -> None:
    rows = grid(3)
    found = grid_effects(rows, VARY, default_of, "top1_last")
    (one,) = [e for e in found if e.kind == "default" and e.factors == (REAL,) and e.levels == (MIN,)]

    def mean(level: str) -> float:
        return float(np.mean([row.metrics["top1_last"] for row in rows if row.params.get(REAL) == level]))

    assert one.difference == pytest.approx(mean(MIN) - mean("max_similarity"))
    assert one.num_blocks == 9
    assert one.against == "max_similarity"


def test_a_level_that_harms_is_marked_and_named_in_the_note(grid: Grid) -> None:
    _, default, _ = effect_tables(grid(3, {"min": -0.008}), VARY, default_of)
    assert default.title.startswith("Main effects of levels, against the default level, test, last step, 20 images")
    against, difference, _, blocks, p, *_ = cells(default, "memory_real.pop min_similarity")
    assert (against, blocks, p) == ("max_similarity", "9", "0.00391")
    assert float(difference) == pytest.approx(-0.008, abs=0.002)
    assert "told apart from zero" in default.note
    assert f"memory_real.pop min_similarity ({difference})" in default.note
    assert "the two do the same" in default.note  # the null hypothesis, in words


def test_levels_have_verdicts_only_where_the_sweep_file_makes_claims(grid: Grid) -> None:
    rows = grid(8, {"min": -0.02})
    without = effect_tables(rows, VARY, default_of)[1]
    table = effect_tables(rows, VARY, default_of, CLAIMS)[1]
    assert "verdict" not in [column.title for column in without.columns]
    assert cells(table, "memory_real.pop min_similarity")[-1] == "worse"
    assert cells(table, "memory_real.pop fifo")[-1] == "equivalent"
    assert "equivalent within 0.01" in table.note


def test_a_grid_that_shrank_leaves_out_cells_that_the_file_does_not_list(grid: Grid) -> None:
    fewer = {**VARY, GEN: ("max_similarity", MIN)}
    found = grid_effects(grid(3), fewer, default_of, "top1_last")
    assert {effect.num_blocks for effect in found if effect.factors == (REAL,)} == {6}


def test_arms_are_judged_against_the_reference_that_the_claims_name(grid: Grid) -> None:
    rows = grid(8, {"min": -0.02})
    assert reference_of(rows, CLAIMS) == "plain"
    named = ClaimsSpec(smallest_effect=0.01, reference="min_max")
    assert reference_of(rows, named) == "min_max"
    assert reference_of(rows, ClaimsSpec(smallest_effect=0.01, reference="never ran")) == "plain"
    words = {arm: verdict.word for arm, verdict in verdicts_of(by_arm(rows), "min_max", "top1_last", named).items()}
    assert words["max_max"] == words["plain"] == "better"
    assert words["min_fifo"] == "equivalent"
    assert "full_data" not in words


def test_a_tally_counts_every_arm_once(grid: Grid) -> None:
    rows = grid(8, {"min": -0.02})
    said = tally(verdicts_of(by_arm(rows), "plain", "top1_last", CLAIMS))
    assert said == "3 worse, 6 equivalent"
    assert said in verdict_note(by_arm(rows), "plain", "top1_last", CLAIMS)


def test_with_three_seeds_the_note_says_how_many_a_verdict_takes(grid: Grid) -> None:
    note = verdict_note(by_arm(grid(3)), "plain", "top1_last", CLAIMS)
    assert note.startswith("No verdict against plain is possible: over 9 arms it takes 5 seeds at least")
    assert "3 seeds find a difference of" in note


def test_without_claims_the_note_says_what_could_have_been_told(grid: Grid) -> None:
    rows = grid(6)
    reach = reach_of(differences_to(by_arm(rows), "plain", "top1_last"))
    assert reach is not None
    assert reach.spread == pytest.approx(0.002 * 2**0.5, rel=0.5)
    assert reach.n == 6
    assert reach.for_point is not None
    assert reach.for_half is not None
    assert reach.for_point < reach.for_half
    assert str(reach) == verdict_note(by_arm(rows), "plain", "top1_last", None)
    assert f"{reach.for_half} seeds for half a point" in str(reach)


def test_equal_differences_and_single_seeds_have_no_reach() -> None:
    assert reach_of({"a": [0.1, 0.1, 0.1]}) is None
    assert reach_of({"a": [0.1]}) is None
    assert reach_of({}) is None


@pytest.fixture
def sentence(run_of: Callable[..., Run]) -> Callable[..., str]:
    def build(rows: list[Row], claims: ClaimsSpec | None = None) -> str:
        return headline(run_of(rows, vary=VARY, claims=claims))

    return build


def test_the_first_sentence_names_the_level_that_matters_with_size_interval_n_and_p(
    grid: Grid, sentence: Callable[..., str]
) -> None:
    rows = grid(3, {"min": -0.008})
    said = sentence(rows)
    effects = [one for one in grid_effects(rows, VARY, default_of, "top1_last") if one.kind == "default"]
    (one,) = [effect for effect in effects if effect.levels == (MIN,) and effect.factors == (REAL,)]
    assert said.startswith(
        "digits at 20 images a class, test, last step: memory_real.pop min_similarity in place of max_similarity makes "
    )
    assert f"{100 * one.difference:+.2f} points" in said
    assert "9 blocks of 3 seeds, p 0.00391, by Holm over 4 levels 0.0156" in said
    assert "the other 3 levels lie within" in said


def test_where_no_level_matters_the_first_sentence_says_so_and_how_near_they_are(
    grid: Grid, sentence: Callable[..., str]
) -> None:
    rows = grid(3, seed=1)
    said = sentence(rows)
    effects = [one for one in grid_effects(rows, VARY, default_of, "top1_last") if one.kind == "default"]
    assert "no level of memory_real.pop or memory_gen.pop is told apart from its default" in said
    bound = max(effect.within(0.05 / 4) for effect in effects)
    assert f"all lie within {points_up(bound)} points of their defaults" in said
    assert all(abs(effect.difference) < bound for effect in effects)


def test_with_claims_the_first_sentence_counts_verdicts(grid: Grid, sentence: Say) -> None:
    assert "of 9 arms against plain 3 worse, 6 equivalent (within 1 point; all at 95%, n = 8)" in sentence(
        grid(8, {"min": -0.02}), CLAIMS
    )


def test_bounds_are_rounded_up() -> None:
    assert points_up(0.00301) == "0.4"
    assert points_up(0.003) == "0.3"


def test_a_single_arm_has_no_sentence(row: Rows, run_of: Callable[..., Run]) -> None:
    assert headline(run_of([row("only", 0, top1_last=0.5)])) == ""


def test_figures_say_in_words_what_they_show(grid: Grid, run_of: Callable[..., Run]) -> None:
    effects, together = effect_figures(run_of(grid(3, {"min": -0.008}), vary=VARY))
    assert effects.title == "Effects at 20 images per class"
    assert "memory_real.pop min_similarity against max_similarity -0." in effects.alt
    assert together.title == "memory_real.pop and memory_gen.pop together at 20 images per class"
    assert "min_similarity with fifo 0.68" in together.alt
    assert effect_figures(run_of(grid(3), vary={REAL: ("max_similarity", MIN)})) == []


def test_figures_are_the_same_each_time(grid: Grid, run_of: Callable[..., Run]) -> None:
    one, other = (effect_figures(run_of(grid(3), vary=VARY)) for _ in range(2))
    assert [drawing.svg for drawing in one] == [drawing.svg for drawing in other]


def test_the_report_begins_with_the_sentence_and_has_effects_in_every_form(grid: Grid, run_of: Callable[..., Run]) -> None:
    run = run_of(grid(8, {"min": -0.02}), vary=VARY, claims=CLAIMS)
    tables = result_tables(run)
    texts = report_texts(run, tables)
    assert texts["table.md"].splitlines()[2] == headline(run)
    assert "| max_max | 0.69" in texts["table.md"]
    assert "| equivalent |" in texts["table.md"]
    assert r"Interactions of two levels" in texts["table.tex"]
    by_arm_ = {
        line["arm"]: line["verdict"] for line in csv.DictReader(io.StringIO(texts["table.csv"])) if line["network"] == "all"
    }
    assert (by_arm_["min_min"], by_arm_["max_max"], by_arm_["plain"]) == ("worse", "equivalent", "")
    lines = list(csv.DictReader(io.StringIO(texts["effects.csv"])))
    assert len(lines) == 6 + 4 + 9
    (one,) = [line for line in lines if line["kind"] == "default" and line["effect"] == "memory_real.pop min_similarity"]
    assert (one["against"], one["verdict"], one["told"], one["blocks"]) == ("max_similarity", "worse", "True", "24")


def test_each_part_of_a_method_has_a_line_with_what_is_lost_without_it(row: Rows) -> None:
    rng, rows = np.random.default_rng(0), []
    for seed in range(8):
        for arm, less in (("full", 0.0), ("no-L.gen", 0.02), ("no-vb", 0.0)):
            value = 0.7 + 0.01 * seed - less + 0.001 * rng.normal()
            rows.append(row(arm, seed, params={"parts": arm}, top1_last=value))
    (table,) = effect_tables(rows, {}, default_of, CLAIMS)
    assert table.title.startswith("Parts of the method")
    assert [name for name, _ in table.rows] == ["L.gen", "vb"]
    assert float(cells(table, "L.gen")[0]) == pytest.approx(0.02, abs=0.002)
    assert (cells(table, "L.gen")[-1], cells(table, "vb")[-1]) == ("better", "equivalent")
    assert "switching the part off does nothing" in table.note
