"""`ddgd-ray export-model`: a run's model as diffusers loads it, with a card."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddgd_ray import cli
from ddgd_ray.run.records import TrialRecord
from ddgd_ray.storage.store import Store

Run = Callable[..., tuple[int, str, str]]


def untuned_adapter(call: Any, out: Path) -> None:
    """What finetune writes, of the shipped model, with zero steps taken."""
    from ddgd_ray.run.folder import BUNDLED
    from ddgd_ray.stages.parts.adapters import Adapter, attach, save_adapter
    from ddgd_ray.stages.parts.backbone import load_dit

    learned = attach(load_dit(next((BUNDLED / "pretrain").iterdir())), Adapter.of(call.spec))
    copy = {name: tensor.detach().clone() for name, tensor in learned.items()}
    save_adapter(out, Adapter.of(call.spec), learned, copy)


@pytest.fixture(scope="module")
def fashion(made_run: Callable[..., Path]) -> Path:
    """Autoencoder and backbone are the shipped ones, the adapter is sound."""
    asked = {"preset": "fashion", "quality": (), "seeds.distill": (0, 1), "evaluate.ipc": (2,)}
    return made_run(asked, fill={"finetune": untuned_adapter})


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def command(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            cli.main(list(map(str, words)))
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        assert isinstance(caught.value.code, int)
        return caught.value.code, shown.out, shown.err

    return command


def finetune_key(path: Path, trial: str) -> str:
    tuned = TrialRecord.read(path / "trials" / f"{trial}.json").finetune
    assert tuned is not None
    return tuned.key


def test_the_best_model_of_a_run_is_exported_and_draws(fashion: Path, tmp_path: Path, run: Run) -> None:
    from diffusers import DiTPipeline

    code, out, err = run("export-model", fashion, tmp_path / "model")
    assert code == 0, err
    assert "arm       0.008, seed 0, best by val_top1" in out
    assert f"DiTPipeline.from_pretrained('{tmp_path / 'model'}')" in out
    pipeline = DiTPipeline.from_pretrained(tmp_path / "model")
    drawn = pipeline(class_labels=[0, 9], num_inference_steps=2).images
    assert [(image.size, image.mode) for image in drawn] == [((32, 32), "L")] * 2
    assert all(np.asarray(image).std() > 10 for image in drawn)
    card = (tmp_path / "model" / "README.md").read_text()
    assert "license: mit\n" in card
    assert "library_name: diffusers\n" in card
    assert "10 classes, as label and name: 0 t-shirt, 1 trouser" in card
    assert "fine-tuned on the real images for 150 steps" in card
    assert "The run's objective prefers this arm: 0.30" in card
    assert "### Measured, 2 images per class" in card
    assert f"`{finetune_key(fashion, '0.008-s0')}`" in card
    assert "ddgd-ray export-model runs/made --arm 0.008 --seed 0 --weights ema" in card
    assert (tmp_path / "model" / "NOTICE").is_file()
    made_from = json.loads((tmp_path / "model" / "provenance.json").read_text())
    assert [stage["stage"] for stage in made_from["stages"]] == ["autoencoder", "encode", "pretrain", "finetune"]
    assert "pipeline(class_labels=[0, 1], guidance_scale=1.5, num_inference_steps=20).images" in card
    assert card.rstrip().endswith(
        "what the two draw differs for that."
    )  # how to load: the timestep note follows where one is due


def test_a_key_and_its_first_digits_export_the_same_model(fashion: Path, tmp_path: Path, run: Run) -> None:
    key = finetune_key(fashion, "0.0-s1")
    code, out, _ = run("export-model", key[:10], tmp_path / "by-key", "--run-dir", fashion.parent, "--weights", "raw")
    assert code == 0
    assert "arm" not in out
    card = (tmp_path / "by-key" / "README.md").read_text()
    assert "of the last step (raw)" in card
    assert f"ddgd-ray export-model {key[:12]} --weights raw" in card
    assert "Exported by its key alone" in card


@pytest.mark.parametrize(
    ("words", "code", "start", "rest"),
    [
        (["RUN", "--arm", "0.08"], 2, "error[unknown-arm]", "did you mean 0.008?"),
        (
            ["RUN", "--arm", "random_real"],
            2,
            "error[no-model]",
            "no model made the set of arm random_real; arms with a model: 0.0, 0.008",
        ),
        (["KEY", "--seed", "0"], 2, "error[spec]", "--arm and --seed choose a model of a run, and this is a key"),
        (["nowhere/made"], 2, "error[missing-file]", "there is no such folder"),
        (["abcdefabcdef"], 2, "error[spec]", "no fine-tuning begins with 'abcdefabcdef'; there: "),
        (["."], 6, "error[no-run]", "this is no run folder"),
    ],
)
def test_what_is_no_model_is_refused(
    words: list[str], code: int, start: str, rest: str, fashion: Path, tmp_path: Path, run: Run
) -> None:
    given = {"RUN": str(fashion), "KEY": finetune_key(fashion, "0.0-s0")}
    what, *options = (given.get(word, word) for word in words)
    found, _, err = run("export-model", what, tmp_path / "out", "--run-dir", fashion.parent, *options)
    assert (found, err.partition(":")[0]) == (code, start)
    assert rest in err
    assert not (tmp_path / "out").exists()


def test_a_model_of_pixels_is_refused_by_name(made_run: Callable[..., Path], tmp_path: Path, run: Run) -> None:
    from ddgd_ray.stages.parts.backbone import save_identity

    digits = made_run({"quality": (), "seeds.distill": (0,)}, fill={"autoencoder": lambda call, out: save_identity(out)})
    code, _, err = run("export-model", digits, tmp_path / "out")
    assert code == 5
    assert err.startswith("error[no-autoencoder]")


def test_a_folder_in_use_is_refused(fashion: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "mine").write_text("mine")
    code, _, err = run("export-model", fashion, tmp_path)
    assert code == 5
    assert re.match(r"error\[exists\]: .*not empty", err)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_model_whose_backbone_is_gone_is_refused(made_run: Callable[..., Path], tmp_path: Path, run: Run) -> None:
    import shutil

    digits = made_run({"quality": (), "seeds.distill": (0,)})
    shutil.rmtree(Store(digits.parent / "store").root / "pretrain")
    code, _, err = run("export-model", digits, tmp_path / "out")
    assert code == 6
    assert "is not in the store" in err
