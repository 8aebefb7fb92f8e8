"""Weights from outside: found in the hub's cache or a folder, checked, and taken over with what their files do not say."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel
from safetensors.torch import load_file, save_file

from ddgd_ray.errors import StageError
from ddgd_ray.inputs.weights import weights_source
from ddgd_ray.spec.preset import DitWeightsSpec, WeightsSpec
from ddgd_ray.spec.stages import AdoptSpec
from ddgd_ray.stages import adopt
from ddgd_ray.stages.base import Context
from ddgd_ray.stages.parts.backbone import Autoencoder, load_dit, save_dit, set_timestep_shift, timestep_shift

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A DiT folder as the hub has them: no word on the timesteps, and the class's older name."""
    folder = tmp_path / "plain" / "transformer"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=2, sample_size=8, num_embeds_ada_norm=5
    )
    for block in model.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    model.save_pretrained(folder)
    rewrite(folder, _class_name="Transformer2DModel", norm_type="ada_norm_zero", cross_attention_dim=None)
    return folder


def rewrite(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def adopted(source: Path, out: Path, **fields: Any) -> Path:
    out.mkdir()
    adopt.run(AdoptSpec(**{"part": "backbone", **fields}), {"weights": source}, out, Context())
    return out


def cached(plain: Path, hub: Path, name: str, revision: str) -> Path:
    """What a download leaves: refs/BRANCH names the commit, snapshots/COMMIT holds its files."""
    repo = hub / name
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / revision).write_text(COMMIT)
    shutil.copytree(plain.parent, repo / "snapshots" / COMMIT)
    return repo / "snapshots" / COMMIT


def test_weights_of_the_hub_are_taken_to_be_trained_with_dits_own_timesteps(plain: Path, tmp_path: Path) -> None:
    model = load_dit(adopted(plain, tmp_path / "out"))
    assert timestep_shift(model) == 0
    assert torch.equal(model.state_dict()["proj_out_2.weight"], load_file(plain / WEIGHTS)["proj_out_2.weight"])


def test_the_timesteps_enter_the_key() -> None:
    kinds = [DitWeightsSpec(repo="a/b", timestep_shift=0), DitWeightsSpec(repo="a/b", timestep_shift=1)]
    assert kinds[0].adopted().canonical() != kinds[1].adopted().canonical()


@pytest.mark.parametrize("shift", [0, 1])
def test_a_folder_of_ours_keeps_the_timesteps_it_declares(shift: int, plain: Path, tmp_path: Path) -> None:
    model = load_dit(plain)
    set_timestep_shift(model, shift)
    (tmp_path / "ours").mkdir()
    save_dit(model, tmp_path / "ours")
    assert timestep_shift(load_dit(tmp_path / "ours")) == shift
    assert timestep_shift(load_dit(adopted(tmp_path / "ours", tmp_path / "again", timestep_shift=shift))) == shift
    with pytest.raises(StageError, match=f"trained with timestep_shift {shift}.* the preset says {1 - shift}") as caught:
        adopted(tmp_path / "ours", tmp_path / "wrong", timestep_shift=1 - shift)
    assert caught.value.fix == f"--set backbone.timestep_shift={shift}"


def test_a_branch_in_the_hubs_cache_is_recorded_by_its_commit(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = cached(plain, tmp_path / "hub", "models--someone--DiT-tiny", "main")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    sources = [weights_source(DitWeightsSpec(repo="someone/DiT-tiny", revision=name)) for name in ("main", COMMIT)]
    assert sources[0] == sources[1]
    assert sources[0].path == snapshot / "transformer"
    assert sources[0].origin == f"someone/DiT-tiny@{COMMIT}"
    out = adopted(sources[0].path, tmp_path / "out")
    assert json.loads((out / "origin.json").read_text()) == {"repo": "someone/DiT-tiny", "commit": COMMIT}


def test_a_checkpoint_file_is_known_by_its_content_not_its_name(tmp_path: Path) -> None:
    for name, content in (("a.pt", b"1"), ("b.pt", b"1"), ("c.pt", b"2")):
        (tmp_path / name).write_bytes(content)
    prints = [weights_source(DitWeightsSpec(repo="a/b", file=str(tmp_path / f"{n}.pt"))).fingerprint for n in "abc"]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"file": "{}/none.pt"}, "the checkpoint does not exist"),
        ({"file": "{}"}, "the checkpoint is a folder"),
        ({"folder": "{}/a.pt"}, r"expected a folder in diffusers layout, got a file\n  help: --set backbone.file="),
        ({"folder": "{}"}, "expected config.json and diffusion_pytorch_model.safetensors here"),
    ],
)
def test_weights_that_are_not_there_come_with_what_to_set(fields: dict[str, str], words: str, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"1")
    placed = {name: value.format(tmp_path) for name, value in fields.items()}
    with pytest.raises(StageError, match=words):
        weights_source(DitWeightsSpec(repo="a/b", **placed))


def test_a_tensor_that_is_missing_extra_or_misshapen_is_named(plain: Path, tmp_path: Path) -> None:
    tensors = load_file(plain / WEIGHTS)
    tensors["surplus"] = torch.ones(2)
    tensors["proj_out_2.bias"] = torch.ones(2)
    del tensors["proj_out_1.bias"]
    save_file(tensors, plain / WEIGHTS)
    with pytest.raises(StageError) as caught:
        adopted(plain, tmp_path / "out")
    for words in ("3 tensors", "proj_out_1.bias is missing", "surplus is not part of it", "proj_out_2.bias: expected (16,)"):
        assert words in str(caught.value)


@pytest.mark.parametrize("num_bytes", [0, 100])
def test_a_truncated_safetensors_file_is_named(num_bytes: int, plain: Path, tmp_path: Path) -> None:
    (plain / WEIGHTS).write_bytes((plain / WEIGHTS).read_bytes()[:num_bytes])
    with pytest.raises(StageError, match=f"{num_bytes} bytes") as caught:
        adopted(plain, tmp_path / "out")
    assert (caught.value.code, caught.value.where) == ("weights-damaged", str(plain / WEIGHTS))


def test_weights_of_an_older_layout_of_the_hub_are_read(plain: Path, tmp_path: Path) -> None:
    torch.save(load_file(plain / WEIGHTS), plain / "diffusion_pytorch_model.bin")
    (plain / WEIGHTS).unlink()
    assert weights_source(DitWeightsSpec(repo="a/b", folder=str(plain))).path == plain
    assert load_dit(adopted(plain, tmp_path / "out")).config["num_layers"] == 2


def test_blocks_with_embedders_of_their_own_are_refused(plain: Path, tmp_path: Path) -> None:
    tensors = load_file(plain / WEIGHTS)
    tensors["transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"] += 1
    save_file(tensors, plain / WEIGHTS)
    with pytest.raises(StageError, match="block 1 has another class_embedder"):
        adopted(plain, tmp_path / "out")


def test_an_autoencoder_with_the_attention_names_of_old_is_taken_over(tmp_path: Path) -> None:
    torch.manual_seed(0)
    kl = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=8, layers_per_block=1, latent_channels=4)
    folder = tmp_path / "vae"
    kl.save_pretrained(folder)
    old = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    renamed = {}
    for name, tensor in load_file(folder / WEIGHTS).items():
        for new, before in old.items():
            name = name.replace(f"attentions.0.{new}", f"attentions.0.{before}")
        renamed[name] = tensor
    assert sum(".query." in name for name in renamed) == 4
    save_file(renamed, folder / WEIGHTS)
    source = weights_source(WeightsSpec(repo="a/b", folder=str(tmp_path)))
    out = adopted(source.path, tmp_path / "out", part="autoencoder")
    images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = kl.eval().encode(images).latent_dist.mean * kl.config["scaling_factor"]
    torch.testing.assert_close(Autoencoder.load(out).posterior(images)[0], expected, rtol=1e-5, atol=1e-6)
