"""Sampling: the same set in any batches, by any number of workers, after any crash; DPM-Solver++ against its formulas."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from torch import Tensor

from ddgd_ray.errors import SpecError, Stopped
from ddgd_ray.method.difffit import freeze_all_but, trainable_state
from ddgd_ray.method.noise import linear_schedule
from ddgd_ray.method.sampling import Ddim, noise_stream, sample
from ddgd_ray.spec.stages import ImagesSpec, SampleSpec
from ddgd_ray.stages import sample as stage
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.parts.adapters import Adapter, save_adapter
from ddgd_ray.stages.parts.backbone import load_dit, save_dit
from ddgd_ray.stages.parts.solver import DpmSolver
from ddgd_ray.storage.store import file_sha256


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[SampleSpec, dict[str, Path]]:
    """The spec of a sampling of 20 images by untrained networks, and the folders it reads."""
    torch.manual_seed(0)
    folders = {name: tmp_path_factory.mktemp(name) for name in ("backbone", "adapter", "autoencoder")}
    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        in_channels=4,
        out_channels=8,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=5,
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # left as built, its output layers are zero
    for block in model.transformer_blocks:
        block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    save_dit(model, folders["backbone"])
    tuned = load_dit(folders["backbone"])
    freeze_all_but(tuned, "difffit")
    ema = trainable_state(tuned)
    raw = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in ema.items()}
    save_adapter(folders["adapter"], Adapter("difffit"), raw, ema)
    blocks = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
    kl = AutoencoderKL(3, 3, *blocks, block_out_channels=(8, 16), norm_num_groups=4, sample_size=16)
    kl.save_pretrained(folders["autoencoder"])
    images = ImagesSpec(source="imagefolder", classes=("a", "b", "c", "d", "e"), size=16)
    return SampleSpec(images=images, steps=5, ipc=4), folders


def pngs(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): file_sha256(path) for path in sorted(folder.rglob("*.png"))}


def draw(made: tuple[SampleSpec, dict[str, Path]], out: Path, ctx: Context | None = None, **changes: Any) -> dict[str, str]:
    out.mkdir(exist_ok=True)
    stage.run(made[0].model_copy(update=changes), made[1], out, ctx or Context())
    return pngs(out)


@pytest.fixture(scope="module")
def expected(made: tuple[SampleSpec, dict[str, Path]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return draw(made, tmp_path_factory.mktemp("expected") / "set")


@pytest.mark.parametrize("chunk", [1, 3, 8, 19])
def test_on_a_cpu_every_chunk_gives_the_same_bytes(made: Any, expected: dict[str, str], chunk: int, tmp_path: Path) -> None:
    assert draw(made, tmp_path / "set", Context(chunk=chunk)) == expected


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp"])
def test_a_small_set_is_a_prefix_of_a_larger_one(made: Any, sampler: str, tmp_path: Path) -> None:
    small = draw(made, tmp_path / "small", ipc=1, sampler=sampler)
    large = draw(made, tmp_path / "large", ipc=3, sampler=sampler)
    assert len(large) == 3 * len(small) > 0
    assert small.items() <= large.items()


def test_each_field_changes_the_images(made: Any, expected: dict[str, str], tmp_path: Path) -> None:
    options: list[dict[str, Any]] = [{"sampler": "ddim"}, {"sampler": "dpmpp"}, {"steps": 6}, {"guidance": 2.0}]
    options += [{"cfg_channels": 1}, {"weights": "raw"}, {"dtype": "bfloat16"}, {"seed": 1}]
    sets = [draw(made, tmp_path / str(number), **changes) for number, changes in enumerate(options)]
    assert len({tuple(found.values()) for found in [*sets, expected]}) == len(sets) + 1


def test_bfloat16_is_the_denoisers_arithmetic_and_latents_stay_float32(made: Any) -> None:
    predicted = []
    for dtype in ("float32", "bfloat16"):
        draws = stage._Draw(made[0].model_copy(update={"dtype": dtype}), made[1], Context())
        shape = (8, int(draws.model.config["in_channels"]), *[int(draws.model.config["sample_size"])] * 2)
        z_t = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        predicted.append(draws.denoise(z_t, torch.full((8,), 500), torch.arange(8) % 5))
        assert predicted[-1].dtype == torch.float32
    assert not torch.equal(*predicted)
    torch.testing.assert_close(*predicted, atol=0.05, rtol=0.05)  # bfloat16 keeps three digits


def _one_rank(rank: int, num_ranks: int, made: Any, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=num_ranks)
    out = folder / f"set{rank}"
    out.mkdir()
    stage.run(made[0], made[1], out, Context(chunk=6, rank=rank, num_ranks=num_ranks, keep=folder / "kept"))
    dist.destroy_process_group()


def test_two_workers_draw_the_set_of_one_and_resume_it(made: Any, expected: dict[str, str], tmp_path: Path) -> None:
    # some images are there already, the ranks must agree on the others: rank 0 alone knows
    draw(made, tmp_path / "part", Context(keep=tmp_path / "kept"), ipc=1)
    mp.start_processes(_one_rank, (2, made, tmp_path), nprocs=2, start_method="fork")
    assert pngs(tmp_path / "set0") == expected
    assert not list((tmp_path / "set1").iterdir())


def _one_stopped_rank(rank: int, num_ranks: int, made: Any, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=num_ranks)
    out, stop_file = folder / f"set{rank}", folder / "stop"
    out.mkdir()

    def report(step: int, metrics: Any) -> None:
        stop_file.touch()

    mine = {"rank": rank, "num_ranks": num_ranks, "keep": folder / "kept", "report": report}
    with pytest.raises(Stopped, match="told to stop after 8 of"):
        stage.run(made[0], made[1], out, Context(chunk=4, stop_file=stop_file if rank == 0 else None, **mine))
    dist.destroy_process_group()


def test_two_workers_stop_together_when_one_is_told_to_and_keep_what_they_have(
    made: Any, expected: dict[str, str], tmp_path: Path
) -> None:
    mp.start_processes(_one_stopped_rank, (2, made, tmp_path), nprocs=2, start_method="fork")
    assert len(pngs(tmp_path / "kept")) == 8
    assert draw(made, tmp_path / "set", Context(keep=tmp_path / "kept")) == expected


class _CrashedError(Exception):
    pass


def test_a_restarted_sampling_draws_what_is_missing_or_damaged_and_nothing_else(
    made: Any, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(step: int, metrics: Any) -> None:
        if step == 12:
            raise _CrashedError

    kept = tmp_path / "kept"
    with pytest.raises(_CrashedError):
        draw(made, tmp_path / "first", Context(chunk=4, keep=kept, report=crash))
    whole = pngs(kept)
    assert 4 <= len(whole) <= 12
    cut, changed, gone, *_ = sorted(kept.rglob("*.png"))
    cut.write_bytes(cut.read_bytes()[:40])
    content = bytearray(changed.read_bytes())
    content[-20] ^= 1
    changed.write_bytes(content)
    gone.unlink()

    drawn: list[tuple[int, int]] = []
    images = stage._Draw.images

    def listening(self: Any, items: list[tuple[int, int]]) -> Tensor:
        drawn.extend(items)
        return images(self, items)

    monkeypatch.setattr(stage._Draw, "images", listening)
    assert draw(made, tmp_path / "second", Context(chunk=4, keep=kept)) == expected
    assert len(drawn) == len(expected) - len(whole) + 3
    assert len(set(drawn)) == len(drawn)


def test_nothing_but_the_set_is_left_in_the_folder(made: Any, tmp_path: Path) -> None:
    draw(made, tmp_path / "set")
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["images", "labels.json", "metadata.jsonl"]
    lines = [json.loads(line) for line in (tmp_path / "set" / "metadata.jsonl").read_text().splitlines()]
    assert {line["file_name"]: line["sha256"] for line in lines} == pngs(tmp_path / "set")


def test_dpmpp_with_a_thousand_steps_is_refused(made: Any) -> None:
    values = made[0].model_dump()
    with pytest.raises((SpecError, ValueError), match="at most 999"):
        SampleSpec(**{**values, "images": made[0].images, "sampler": "dpmpp", "steps": 1000})
    assert len(set(DpmSolver(999).timesteps)) == 999


SPREAD = 0.5


def gaussian(z_t: Tensor, t_B: Tensor, labels_B: Tensor) -> Tensor:
    """The best denoiser for N(0, SPREAD^2) data."""
    abar = linear_schedule().abar_T[t_B].float()[:, None, None, None]
    return (1 - abar).sqrt() * z_t / (abar * SPREAD**2 + 1 - abar)


def run_sampler(sampler: Any, denoise: Callable[[Tensor, Tensor, Tensor], Tensor] = gaussian, size: int = 16) -> Tensor:
    return sample(
        denoise,
        sampler,
        torch.zeros(2, dtype=torch.int64),
        [noise_stream(0, "c", index) for index in range(2)],
        latent_shape=(1, size, size),
        guidance=1.0,
        cfg_channels=1,
        null_label=1,
    )


def slow_dpmpp(z: Tensor, num_steps: int, denoise: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """DPM-Solver++(2M) of Lu et al. 2022, Algorithm 2, in float64, the first and the last step at first order."""
    abar_T = linear_schedule().abar_T
    kept = [round(999 * place / num_steps) for place in range(num_steps, 0, -1)]
    alphas = [math.sqrt(abar_T[t]) for t in kept] + [1.0]
    sigmas = [math.sqrt(1 - abar_T[t]) for t in kept] + [0.0]
    x0s: list[Tensor] = []
    for place, t in enumerate(kept):
        eps = denoise(z.float(), torch.full((len(z),), t), torch.zeros(len(z))).double()
        x0s.append((z - sigmas[place] * eps) / alphas[place])
        if place == num_steps - 1:
            return x0s[-1]
        lambdas = [math.log(alphas[i] / sigmas[i]) for i in range(place + 2)]
        h = lambdas[place + 1] - lambdas[place]
        data = x0s[-1]
        if place > 0:
            r = (lambdas[place] - lambdas[place - 1]) / h
            data = (1 + 1 / (2 * r)) * x0s[-1] - 1 / (2 * r) * x0s[-2]
        z = sigmas[place + 1] / sigmas[place] * z - alphas[place + 1] * math.expm1(-h) * data
    raise AssertionError


@pytest.mark.parametrize("num_steps", [2, 5, 20])
def test_dpmpp_equals_a_slow_twin(num_steps: int) -> None:
    def crooked(z_t: Tensor, t_B: Tensor, labels_B: Tensor) -> Tensor:
        return gaussian(z_t, t_B, labels_B) + 0.1 * torch.sin(3 * z_t)

    start = torch.stack([torch.randn(1, 16, 16, generator=noise_stream(0, "c", index)) for index in range(2)]).double()
    # float32 against float64; the first step divides by alpha = 1/157
    torch.testing.assert_close(
        run_sampler(DpmSolver(num_steps), crooked).double(), slow_dpmpp(start, num_steps, crooked), atol=2e-4, rtol=2e-4
    )


def test_dpmpp_in_few_steps_reaches_what_ddim_reaches_in_many() -> None:
    solution = run_sampler(Ddim(linear_schedule(), 1000))
    errors = {steps: float((run_sampler(DpmSolver(steps)) - solution).abs().max()) for steps in (10, 20, 50)}
    ddim_error = float((run_sampler(Ddim(linear_schedule(), 20)) - solution).abs().max())
    assert errors[50] < errors[20] < errors[10]
    assert errors[20] < ddim_error / 2
    assert errors[50] < 0.02  # of latents with spread 0.5
