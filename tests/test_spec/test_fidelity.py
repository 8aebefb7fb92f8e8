"""What a sweep file may not say of races and rungs, told with its line, all at once."""

from pathlib import Path

import pytest

from ddgd_ray.errors import SpecErrors
from ddgd_ray.spec.fidelity import at_rung
from ddgd_ray.spec.sweep import read_sweep

VARY = "name: a\npreset: digits\nvary:\n  finetune.lambda_g: [0.0, 0.008, 0.5]\n"
SPACE = "finetune.lambda_g: {type: float, low: 1e-4, high: 1e-1, log: true}\n"
SEARCH = "name: a\npreset: digits\nsearch: {space: space.yaml, parallel: %d}\nseeds: {distill: [0, 1, 2, 3]}\n"
RACE = "race: {first_seeds: 2}\n"
RUNGS = "rungs:\n  eta: 2\n  settings:\n    - {finetune.steps: 10, seeds.distill: [0]}\n    - {}\n"


def refusal(folder: Path, text: str) -> list[str]:
    (folder / "space.yaml").write_text(SPACE)
    (folder / "a.yaml").write_text(text)
    with pytest.raises(SpecErrors) as caught:
        read_sweep(folder / "a.yaml", {})
    return [str(error).replace(f"{folder}/", "") for error in caught.value.errors]


@pytest.mark.parametrize(
    ("text", "start", "words"),
    [
        (VARY + "race: {first_seeds: 4}\n", "a.yaml:5 race.first_seeds", "the first 4 seeds are all of the 3 in seeds.distill"),
        (VARY + "race: {first_seeds: 1}\n", "a.yaml:5 race.first_seeds", "expected a number >= 2, got integer 1"),
        (VARY + "seeds: {distill: [0]}\nrace: {}\n", "a.yaml:6 race.first_seeds", "all of the 1 in seeds.distill"),
        (VARY + "race: {first_seeds: 2, keep: 3}\n", "a.yaml:5 race", "3 configurations run and 3 are kept"),
        (VARY + "race: {confidence: 1.0}\n", "a.yaml:5 race.confidence", "expected a number < 1"),
        (
            VARY + RACE + "objective: {constraints: [{metric: seconds, max: 9}]}\n",
            "a.yaml:6 objective.constraints",
            "would be ignored",
        ),
        (
            VARY + RACE + "objective: {also: [{metric: seconds, direction: minimize}]}\n",
            "a.yaml:6 objective.also",
            "would be ignored",
        ),
        (
            VARY + RUNGS.replace("finetune.steps: 10", "images.validation_per_class: 0"),
            "a.yaml:8 rungs.settings.0",
            "rung 0 has none",
        ),
        (SEARCH % 4 + RACE, "a.yaml:5 race", "a race compares configurations that are all known at its start"),
        (VARY + RACE + RUNGS, "a.yaml:6 rungs", "race and rungs are both given"),
        (VARY + RACE + "set: {images.validation_per_class: 0}\n", "a.yaml:1 objective.metric", "there are none"),
        (VARY + "rungs: {settings: [{}]}\n", "a.yaml:5 rungs.settings", "expected a list of at least 2"),
        (VARY + RUNGS.replace("- {}", "- {sample.steps: 2}"), "a.yaml:9 rungs.settings.1", "must be the full setting, {}"),
        (VARY + RUNGS.replace("{finetune.steps: 10, seeds.distill: [0]}", "{}"), "a.yaml:8 rungs.settings.0", "full setting"),
        (VARY + RUNGS.replace("steps: 10", "lambda_g: 0.1"), "a.yaml:8 rungs.settings.0.finetune.lambda_g", "it here"),
        (
            VARY + RUNGS.replace("finetune.steps: 10", "finetune.seed: 1"),
            "a.yaml:8 rungs.settings.0.finetune.seed",
            "seeds.distill",
        ),
        (VARY + RUNGS.replace("finetune.steps", "finetune.stps"), "a.yaml:8 finetune.stps", "did you mean steps?"),
        (VARY + RUNGS.replace("[0]", "[0, 0]"), "a.yaml:8 seeds.distill", "a seed is listed twice"),
        (SEARCH % 1 + RUNGS, "a.yaml:3 search.parallel", "search.parallel is 1"),
        (VARY.replace("0.0, 0.008, ", "") + RUNGS, "a.yaml:5 rungs", "there is nothing to halve"),
    ],
    ids=lambda text: text.splitlines()[-1][:60] if isinstance(text, str) else None,
)
def test_what_cannot_work_is_refused_where_it_stands(tmp_path: Path, text: str, start: str, words: str) -> None:
    errors = refusal(tmp_path, text)
    assert len(errors) == 1, errors
    assert start in errors[0]
    assert words in errors[0]


def test_several_mistakes_are_told_together(tmp_path: Path) -> None:
    text = VARY + RUNGS.replace("finetune.steps: 10", "finetune.lambda_g: 0.1").replace("- {}", "- {sample.steps: 5}")
    assert len(refusal(tmp_path, text)) == 2


def test_a_rung_changes_what_it_names_and_leaves_out_what_decides_nothing(tmp_path: Path) -> None:
    setting = "{finetune.steps: 10, seeds.distill: [0], evaluate.networks: [convnet3_slim], evaluate.protocol.steps: 5}"
    text = RUNGS.replace("{finetune.steps: 10, seeds.distill: [0]}", setting)
    (tmp_path / "a.yaml").write_text(VARY + text + "quality: [latents]\nevaluate: {also: [noaug], ipc: [7]}\n")
    sweep = read_sweep(tmp_path / "a.yaml", {})
    low = at_rung(sweep, 0)
    preset = low.preset_with({"finetune.lambda_g": 0.5})
    assert (preset.finetune.steps, preset.finetune.lambda_g, preset.evaluate.protocol.steps) == (10, 0.5, 5)
    assert (low.spec.seeds.distill, low.spec.evaluate.networks, low.spec.evaluate.ipc) == ((0,), ("convnet3_slim",), (7,))
    assert (low.spec.quality, low.spec.evaluate.also) == ((), ())
    assert at_rung(sweep, 1) is sweep
