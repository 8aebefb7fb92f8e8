"""The evaluator: packed seeds are separate seeds, lengths and rates are the protocol's, tests happen when they are told to."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ddgd_ray.errors import SpecError, StageError
from ddgd_ray.spec.evaluation import DecodeSpec, EvaluateSpec, TestSpec
from ddgd_ray.spec.protocol import ProtocolSpec, StepPlan
from ddgd_ray.spec.stages import ImagesSpec
from ddgd_ray.stages import decode, evaluate
from ddgd_ray.stages import final_test as test_stage
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.parts.batches import BLOCK, augmented, steps_of
from ddgd_ray.stages.parts.distilled import read_set
from ddgd_ray.storage.store import MANIFEST

CLASSES = ("a", "b", "c")
EVERYTHING = {"name": "idc", "size": 32, "steps": 6, "batch_size": 12, "shift": 1, "num_tests": 2, "learning_rate": 1e-3}
Run = Callable[..., tuple[list[dict[str, float]], list[Path]]]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """30 + 18 + 18 colour images of three classes that differ in their colour gradients, decoded at 32 px."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    slope = rng.normal(size=(3, 2, 3)) * 60
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 32)] * 2, indexing="ij"), axis=2)
    for split, num in (("train", 16), ("val", 6)):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for index in range(num):
                pixels = np.clip(128 + grid @ slope[label] + rng.normal(size=(32, 32, 3)) * 40, 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{index:02d}.png")
    real = tmp_path_factory.mktemp("decoded")
    decode.run(DecodeSpec(images=images_spec(root), size=32, resize=32), {"images": root}, real, Context())
    return {"set": root / "train", "real": real, "images": root}


def images_spec(root: Path | str = "") -> ImagesSpec:
    return ImagesSpec(source="imagefolder", classes=CLASSES, size=32, validation_per_class=6, root=str(root))


def spec_of(**changes: Any) -> EvaluateSpec:
    fields = {"network": "convnet3", "ipc": 10, "protocol": EVERYTHING, "keep_weights": True, "images": images_spec()}
    return EvaluateSpec.model_validate({**fields, **changes})


@pytest.fixture
def run(inputs: dict[str, Path], tmp_path: Path) -> Run:
    """Trains the specs together; each folder gets the manifest that the store would write."""

    def together(*specs: EvaluateSpec, more: dict[str, Path] | None = None) -> tuple[list[dict[str, float]], list[Path]]:
        outs = [tmp_path / f"{len(list(tmp_path.iterdir()))}-{index}" for index in range(len(specs))]
        for spec, out in zip(specs, outs, strict=True):
            out.mkdir()
            (out / MANIFEST).write_text(json.dumps({"spec": spec.canonical()}))
        contexts = [Context() for _ in specs]
        return evaluate.run_packed(specs, {**inputs, **(more or {})}, outs, contexts), outs

    return together


@pytest.mark.parametrize("network", ["convnet3", "convnet3_slim", "resnet_slim"])
def test_seeds_trained_at_once_are_seeds_trained_alone(run: Run, network: str) -> None:
    # every augmentation is on; float32 sums in another order differ by 1e-7 a step, and a few steps of SGD do not blow that up
    specs = [spec_of(network=network, seed=seed) for seed in (3, 4, 5)]
    packed, folders = run(*specs)
    for spec, metrics, folder in zip(specs, packed, folders, strict=True):
        (alone,), (own,) = run(spec)
        assert metrics["train_loss"] == pytest.approx(alone["train_loss"], rel=1e-3)
        kept, expected = load_file(folder / "weights.safetensors"), load_file(own / "weights.safetensors")
        last = [name for name in expected if name.startswith("last.")]
        assert last == [name for name in kept if name.startswith("last.")]
        for name in last:
            torch.testing.assert_close(kept[name], expected[name], rtol=1e-3, atol=2e-4)
    assert len({metrics["train_loss"] for metrics in packed}) == 3


@pytest.mark.parametrize(("dtype", "expected"), [("float32", ("highest", False)), ("tf32", ("high", True))])
def test_forward_and_backward_pass_share_one_precision(run: Run, dtype: str, expected: tuple[str, bool]) -> None:
    """A GPU's kernels look at these settings when they start, and the backward pass starts kernels of its own."""
    seen: dict[str, set[tuple[str, bool]]] = {"forward": set(), "backward": set()}

    def look(when: str) -> None:
        seen[when].add((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))

    def watch(module: torch.nn.Module, given: Any, output: torch.Tensor) -> None:
        look("forward")
        if output.requires_grad:
            output.register_hook(lambda gradient: look("backward"))

    hook = torch.nn.modules.module.register_module_forward_hook(watch)
    before = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
    try:
        run(spec_of(dtype=dtype, network="convnet3_slim"))
    finally:
        hook.remove()
    assert seen == {"forward": {expected}, "backward": {expected}}
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


@pytest.mark.parametrize("num_seeds", [1, 2])
def test_weight_decay_of_matrices_leaves_biases_and_norms_alone(inputs: dict[str, Path], num_seeds: int) -> None:
    fields = {**EVERYTHING, "weight_decay": 0.5, "decays": "matrices", "learning_rate": 0.1, "momentum": 0.0}
    specs = [spec_of(protocol=fields, seed=seed) for seed in range(num_seeds)]
    train = read_set(inputs["set"], specs[0].images, 10)
    training = evaluate.Training(specs, train, 32, None, [Context()] * num_seeds)
    for tensor in training.pack.parameters():
        tensor.grad = torch.zeros_like(tensor)
    before = {name: tensor.detach().clone() for name, tensor in training.pack.state[0].items()}
    training._optimizer.step()
    shrunk = {name for name, tensor in training.pack.state[0].items() if not torch.equal(tensor, before[name])}
    assert shrunk == {name for name in before if name.endswith("weight") and before[name].dim() - (num_seeds > 1) > 1}


def test_idc_leaves_the_steps_of_its_jitter_unclamped() -> None:
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plan = StepPlan.of(ProtocolSpec.model_validate("idc"), 8, 2)

    def seen(**changes: Any) -> torch.Tensor:
        only_jitter = {"name": "idc", "crop_scale": 1.0, "flip": False, "lighting": 0.0, "cutmix": False, **changes}
        protocol = ProtocolSpec.model_validate(only_jitter)
        (step,) = (step for _, step in zip(range(1), steps_of(protocol, plan, 16, [0], "cpu"), strict=False))
        return augmented(images[step["rows"][0]], step, protocol)

    white, black = ((value - 0.485) / 0.229 for value in (1.0, 0.0))  # of red, after the normalisation
    assert seen()[:, 0].max() > white + 0.1
    assert seen()[:, 0].min() < black - 0.1
    clamped = seen(jitter_clamped=True)[:, 0]
    assert black - 1e-5 <= clamped.min()
    assert clamped.max() <= white + 1e-5


def test_the_draws_of_a_seed_do_not_depend_on_the_other_seeds() -> None:
    protocol = ProtocolSpec.model_validate({**EVERYTHING, "steps": BLOCK + 5})
    plan = StepPlan.of(protocol, 30, 3)
    alone = list(steps_of(protocol, plan, 32, [7], "cpu"))
    among = list(steps_of(protocol, plan, 32, [1, 7, 2], "cpu"))
    assert len(alone) == len(among) == BLOCK + 5
    for one, other in zip(alone, among, strict=True):
        for name in one:
            assert torch.equal(one[name][0], other[name][1]), name


@pytest.mark.parametrize(("drop_last", "seen"), [(False, 30), (True, 24)])
def test_an_epoch_shows_each_image_at_most_once(drop_last: bool, seen: int) -> None:
    fields = {"name": "mine", "epochs": 3, "schedule": "step", "batch_size": 12, "drop_last": drop_last}
    protocol = ProtocolSpec.model_validate(fields)
    plan = StepPlan.of(protocol, 30, 3)
    steps = list(steps_of(protocol, plan, 32, [0], "cpu"))
    per_epoch = plan.steps_per_epoch
    assert len(steps) == 3 * per_epoch
    orders = [torch.cat([step["rows"][0] for step in steps[start : start + per_epoch]]) for start in (0, per_epoch)]
    assert [len(order.unique()) for order in orders] == [seen, seen]
    assert [len(order) for order in orders] == [seen, seen]
    assert not torch.equal(*orders)


def test_the_length_follows_the_images_a_class() -> None:
    idc = ProtocolSpec.model_validate("idc")
    assert StepPlan.of(idc, 10, 10).num_steps == 3000  # one batch of 10
    assert StepPlan.of(idc, 100, 10).num_steps == 2000 * 2  # 64 and 36
    assert StepPlan.of(idc, 500, 10).num_steps == 1500 * 8
    assert [StepPlan.of(idc, 100, 10).length(step) for step in range(3)] == [64, 36, 64]
    small = ProtocolSpec.model_validate("quick-small")
    assert [StepPlan.of(small, 10 * ipc, 10).num_steps for ipc in (10, 100, 101)] == [200, 200, 1000]


def test_rates_fall_as_the_protocols_say() -> None:
    plan = StepPlan.of(ProtocolSpec.model_validate("idc"), 100, 10)
    factors = [evaluate.rate_factor("step", plan, epoch * 2) for epoch in (0, 1332, 1333, 1665, 1666, 1999)]
    assert factors == pytest.approx([1, 1, 0.2, 0.2, 0.04, 0.04])
    half = [evaluate.rate_factor("half_cosine", plan, step) for step in (0, 1, 2, 2000, 4000)]
    assert half[:2] == [1, 1], "the rate changes between epochs"
    assert half[2] < 1
    assert half[3:] == pytest.approx([(1 + math.sqrt(0.5)) / 2, 0.5])


def test_the_test_images_are_looked_at_as_told(run: Run) -> None:
    """all, last and none train the same classifier; what they may say of it differs."""
    ((seen,), _), ((last,), _), ((unseen,), (folder,)) = (run(spec_of(tests=when, seed=1)) for when in ("all", "last", "none"))
    assert seen["num_test_looks"] == 2
    assert last["num_test_looks"] == 2
    assert unseen["num_test_looks"] == 0
    assert "top1_best" in seen
    assert "top1_best" not in last
    assert not [name for name in unseen if name.startswith("top1")]
    assert seen["val_top1"] == last["val_top1"] == unseen["val_top1"]
    assert (last["top1_last"], last["top1_selected"]) == (seen["top1_last"], seen["top1_selected"])
    assert json.loads((folder / "result.json").read_text())["measured_on"] == "validation"


def test_a_finalist_is_tested_afterwards_as_it_would_have_been_before(
    run: Run, inputs: dict[str, Path], tmp_path: Path
) -> None:
    (seen,), _ = run(spec_of(seed=2))
    _, (folder,) = run(spec_of(tests="none", seed=2))
    out = tmp_path / "tested"
    out.mkdir()
    found = test_stage.run(TestSpec(), {"classifier": folder, "real": inputs["real"]}, out, Context())
    assert (found["top1_last"], found["top1_selected"]) == (seen["top1_last"], seen["top1_selected"])


def test_the_confusion_matrix_counts_every_test_image(run: Run) -> None:
    (metrics,), (folder,) = run(spec_of())
    result = json.loads((folder / "result.json").read_text())
    counts = np.array(result["confusion"])
    assert counts.sum(axis=1).tolist() == [6, 6, 6]
    assert list(result["per_class_top1"].values()) == pytest.approx((counts.diagonal() / 6).tolist())
    assert counts.diagonal().sum() / 18 == pytest.approx(metrics["top1_last"])
    assert result["protocol"].startswith("idc+")


def test_a_classifier_learns_from_its_set_and_from_a_teacher(run: Run) -> None:
    plain = {"name": "mine", "steps": 40, "batch_size": 15, "learning_rate": 3e-3, "drop_last": True}
    (taught,), (teacher,) = run(spec_of(network="convnet3_slim", protocol=plain, ipc=10))
    assert taught["top1_last"] > 0.8  # chance is a third
    soft = {**plain, "labels": "teacher", "cutmix": True, "temperature": 4.0}
    (student,), _ = run(spec_of(network="convnet3_slim", protocol=soft, seed=9), more={"teacher": teacher})
    assert student["top1_last"] > 0.7


def test_a_loss_that_is_no_number_names_the_seed_and_the_step(run: Run) -> None:
    wild = {**EVERYTHING, "learning_rate": 1e30}
    with pytest.raises(StageError, match="the loss of the classifier with seed 5 is (nan|inf) at step 3"):
        run(spec_of(protocol=wild, seed=5))


def test_a_network_that_the_images_are_too_small_for_is_refused(run: Run) -> None:
    with pytest.raises(SpecError, match="network convnet6 needs images of at least 64 px, got 32"):
        run(spec_of(network="convnet6"))


def test_an_unknown_network_names_the_nearest(run: Run) -> None:
    with pytest.raises(SpecError, match="unknown network 'resnet_a10'") as caught:
        run(spec_of(network="resnet_a10"))
    assert caught.value.fix == "did you mean resnet_ap10?"


def test_more_images_than_there_are_name_the_class_and_the_number(run: Run) -> None:
    with pytest.raises(StageError, match="ipc 17 is more than the images of 3 of 3 classes: a has 16, b has 16, c has 16"):
        run(spec_of(ipc=17))


@pytest.mark.slow
@pytest.mark.parametrize("num_seeds", [1, 2])
def test_a_compiled_pack_learns_what_a_plain_one_learns(inputs: dict[str, Path], num_seeds: int) -> None:
    specs = [spec_of(network="convnet3_slim", seed=seed) for seed in range(num_seeds)]
    train = read_set(inputs["set"], specs[0].images, 10)
    losses = []
    for is_compiled in (False, True):
        training = evaluate.Training(specs, train, 32, None, [Context(compiled=is_compiled)] * num_seeds)
        training.run({})
        losses.append([history[-1]["loss"] for history in training.history])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_on_a_cpu_one_classifier_is_trained_at_a_time_unless_told(inputs: dict[str, Path]) -> None:
    specs = [spec_of(seed=seed) for seed in range(3)]
    assert evaluate.num_at_once(specs, inputs, Context()) == 1
    assert evaluate.num_at_once(specs, inputs, Context(pack=2)) == 2
    assert 0 < evaluate.step_s(specs[:1], Context()) < 60
