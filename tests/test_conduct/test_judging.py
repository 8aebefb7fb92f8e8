"""Ready-made sets, packs and finalists, run for real in this process."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddgd_ray import cli
from ddgd_ray.conduct.sweep import run_sweep
from ddgd_ray.conduct.work import run_in_process
from ddgd_ray.errors import StageError
from ddgd_ray.plan.plan import plan_controls
from ddgd_ray.run.folder import open_store
from ddgd_ray.run.reading import read_run
from ddgd_ray.spec.sweep import Sweep
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.publish import publish_call, publish_packed
from ddgd_ray.storage.store import Store

Tiny = Callable[..., Sweep]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """real/train, real/val and made: three classes of coloured pictures."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for place, num in (("real/train", 6), ("real/val", 4), ("made", 3)):
        for label in range(3):
            (root / place / f"class {label}").mkdir(parents=True)
            for index in range(num):
                pixels = np.full((20, 24, 3), 40) + 80 * np.eye(3)[label] + rng.normal(size=(20, 24, 3)) * 20
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / place / f"class {label}" / f"{index}.png")
    return root


def evaluate(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as caught:
        cli.main(["evaluate", *words, "--executor", "local", "--no-tracking"])
    captured = capsys.readouterr()
    return int(caught.value.code or 0), captured.out + captured.err


QUICK = ["--networks", "convnet3", "--protocol", "idc", "--set", "evaluate.protocol.size=16", "--set", "images.size=16"]
QUICK += ["--set", "evaluate.protocol.steps=3", "--set", "evaluate.protocol.num_tests=1", "--set", "evaluate.dtype=float32"]


def test_any_folder_is_judged_and_the_second_time_nothing_runs(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(pictures / "made"), "--real", str(pictures / "real"), "--run-dir", str(tmp_path), "--seeds", "0", "1", *QUICK]
    code, text = evaluate(capsys, *words)
    assert code == 0
    assert "| made | 1 |" in text
    assert "protocol idc+" in text
    assert "this run  3 jobs" in text, "decoding and two classifiers"
    code, text = evaluate(capsys, *words)
    assert code == 0
    assert "this run  0 jobs" in text
    code, text = evaluate(capsys, *words, "--controls", "random_real", "full_data")
    assert code == 0
    assert "full_data (ceiling)" in text
    assert (tmp_path / "evaluate-made" / "report" / "grid-made.png").is_file()


def test_the_sets_of_several_seeds_are_one_arm(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source in (pictures / "made").rglob("*.png"):  # a second set: the same pictures upside down
        target = tmp_path / "again" / source.parent.name / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(Image.open(source))[::-1]).save(target)
    paths = [str(pictures / "made"), str(tmp_path / "again")]
    code, text = evaluate(
        capsys, *paths, "--real", str(pictures / "real"), "--run-dir", str(tmp_path), "--seeds", "0", "--name", "mine", *QUICK
    )
    assert code == 0
    assert "| mine | 2 |" in text


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "what are the real images"),
        (["--preset", "digits"], 5, "3 class folders, expected the 10 classes"),
        (["--real", "REAL", "--ipc", "4"], 5, "ipc 4 is more than the 3 images of its smallest class"),
        (["--real", "REAL", "--ipc", "3", "--protocol", "icd"], 2, "did you mean idc?"),
        (["--real", "REAL", "--networks", "resnet_ap0"], 2, "did you mean resnet_ap10?"),
        (["--real", "REAL", "--controls", "herdin"], 2, "did you mean herding"),
        (["--real", "/nowhere"], 5, "does not exist"),
    ],
)
def test_what_cannot_be_judged_is_refused_before_anything_runs(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, said: str
) -> None:
    words = [str(pictures / "real") if word == "REAL" else word for word in words]
    found, text = evaluate(capsys, str(pictures / "made"), "--run-dir", str(tmp_path / "runs"), *words)
    assert said in text
    assert found == code
    assert not (tmp_path / "runs").exists()


def test_a_damaged_picture_fails_the_run_and_is_named(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for source in (pictures / "made").rglob("*.png"):
        target = tmp_path / "made" / source.parent.name / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes()[: 200 if source.name == "1.png" else None])
    real = ["--real", str(pictures / "real"), "--run-dir", str(tmp_path / "runs"), "--seeds", "0"]
    code, text = evaluate(capsys, str(tmp_path / "made"), *real, *QUICK)
    assert code in (4, 5)
    assert "3 of 9 images of the set cannot be used" in text
    assert "1.png" in text


def test_sets_stand_beside_arms_in_a_sweep(tiny: Tiny, tmp_path: Path) -> None:
    first = run_sweep(tiny(), tmp_path, run_in_process)
    made = next(record for record in first.records if record.trial.arm == "max")
    folder = open_store(tmp_path).get(*made.trial.build[-1].ref)
    assert folder is not None
    result = run_sweep(tiny({"sets": {"theirs": str(folder.path)}, "name": "beside"}), tmp_path, run_in_process)
    assert result.exit_code == 0
    rows = read_run(tmp_path / "beside", open_store(tmp_path)).rows
    theirs = next(row for row in rows if row.arm == "theirs")
    ours = next(row for row in rows if row.arm == "max" and row.seed == made.trial.seed)
    assert theirs.metrics["top1_last"] == ours.metrics["top1_last"], "the same images, whoever made them"


def test_a_set_that_is_not_there_is_told_at_the_plan(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="the set's folder does not exist"):
        plan_controls(tiny({"sets": {"theirs": str(tmp_path / "nowhere")}}))


def test_finalists_are_tested_after_the_search_and_the_table_says_so(tiny: Tiny, tmp_path: Path) -> None:
    changes = {"test": "finalists", "images.validation_per_class": 20, "quality": ("latents",)}
    result = run_sweep(tiny(changes), tmp_path, run_in_process)
    assert result.exit_code == 0
    store = open_store(tmp_path)
    tested = {record.trial.arm for record in result.records if record.is_finalist}
    assert "random_real" in tested
    assert len(tested) == 2
    assert len(store.keys("test")) == 4
    for row in read_run(result.folder.path, store).rows:
        assert ("top1_last" in row.metrics) == (row.arm in tested)
    assert run_sweep(tiny(changes), tmp_path, run_in_process).num_ran == 0


@pytest.fixture
def calls(tiny: Tiny, tmp_path: Path) -> tuple[Store, list[Any]]:
    """Evaluators of one set that differ in their seeds alone, with their inputs published."""
    store = open_store(tmp_path)
    store.prepare()
    trial = plan_controls(tiny({"seeds.evaluate": (0, 1, 2, 3), "seeds.distill": (0,)}))[0]
    for call in (*trial.prepare, *trial.build):
        publish_call(call, store, Context())
    return store, [item.call for item in trial.evaluators]


def test_a_pack_publishes_each_of_its_calls_and_what_is_there_it_leaves_alone(calls: tuple[Store, list[Any]]) -> None:
    store, evaluators = calls
    there, _ = publish_call(evaluators[1], store, Context())
    publish_packed(evaluators, store, Context(pack=2))
    assert all(store.has(*call.ref) for call in evaluators)
    again = store.get(*evaluators[1].ref)
    assert again is not None
    assert again.manifest == there.manifest


def test_packs_that_overlap_wait_for_each_other_and_not_for_ever(calls: tuple[Store, list[Any]]) -> None:
    store, evaluators = calls
    errors: list[BaseException] = []

    def publish(some: list[Any]) -> None:
        try:
            publish_packed(some, store, Context(pack=3))
        except BaseException as err:
            errors.append(err)

    threads = [threading.Thread(target=publish, args=(some,)) for some in (evaluators[:3], evaluators[:0:-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert all(store.has(*call.ref) for call in evaluators)


def test_quality_by_inception_asks_for_its_file(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="needs a TorchScript file, and none is given"):
        plan_controls(tiny({"quality": ("inception",)}))
    with pytest.raises(StageError, match="there is no such file"):
        plan_controls(tiny({"quality": ("inception",), "reference.inception": str(tmp_path / "gone.pt")}))
