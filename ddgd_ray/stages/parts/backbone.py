"""The two networks of latent diffusion: build, save and load them in diffusers' own layout.

Shapes: B batch, C image channels, S side in pixels, c latent channels, s side in latents.
"""

import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ddgd_ray.errors import StageError
from ddgd_ray.method.difffit import tie_embedders
from ddgd_ray.method.spectrum import with_gain
from ddgd_ray.stages.parts.tensor_files import copy_into, read_tensors

IDENTITY = "IdentityAutoencoder"
TIMESTEP_SHIFT = "timestep_shift"  # key of a model's config.json; plain diffusers warns that it ignores it
ORIGINAL_SHIFT, DIFFUSERS_SHIFT = 0, 1
Model = TypeVar("Model", bound=nn.Module)


def to_unit_range(images: Tensor) -> Tensor:
    """Images (B, S, S, C) uint8 as (B, C, S, S) float32 in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Images (B, C, S, S), clipped to [-1, 1], as (B, S, S, C) uint8, rounded to nearest."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)


class Autoencoder:
    """The way from images to latents and back. `kl` is None where pixels are the latents."""

    def __init__(self, kl: AutoencoderKL | None, device: str = "cpu") -> None:
        self.kl = kl.to(device).eval().requires_grad_(False) if kl is not None else None
        self.device = device

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> "Autoencoder":
        config = json.loads((folder / "config.json").read_text())
        if config["_class_name"] == IDENTITY:
            return cls(None, device)
        return cls(from_pretrained(AutoencoderKL, folder), device)

    def _shift_and_scale(self) -> tuple[Tensor | float, Tensor | float]:
        """Shift and scale of latent = (raw - shift) * scale: per channel for our own, one factor for the SD VAE."""
        assert self.kl is not None
        config: Any = self.kl.config
        if config.latents_mean is None:
            return 0.0, float(config.scaling_factor)
        shape = (1, -1, 1, 1)
        mean = torch.tensor(config.latents_mean, device=self.device).view(shape)
        return mean, 1 / torch.tensor(config.latents_std, device=self.device).view(shape)

    @torch.inference_mode()
    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the scaled latent, each (B, c, s, s) float32.

        Pixel latents have the log-variance -30: no noise.
        """
        if self.kl is None:
            return images, torch.full_like(images, -30.0)
        shift, scale = self._shift_and_scale()
        dist: Any = self.kl.encode(images.to(self.device), return_dict=False)[0]
        log_scale = torch.as_tensor(scale).log()
        return (dist.mean - shift) * scale, (dist.logvar + 2 * log_scale).clamp(-30.0, 20.0)

    @torch.inference_mode()
    def decode(self, latents: Tensor, gain_CSR: Tensor | None = None) -> Tensor:
        """Images (B, S, S, C) uint8 of scaled latents (B, c, s, s). gain_CSR: of each spatial frequency; method/spectrum.py."""
        images = self.decode_raw(latents)
        return to_uint8(images if gain_CSR is None else with_gain(images, gain_CSR))

    @torch.inference_mode()
    def decode_raw(self, latents: Tensor) -> Tensor:
        """Images (B, C, S, S) float32 of scaled latents, as the decoder gives them: around [-1, 1], not clipped."""
        if self.kl is None:
            return latents
        shift, scale = self._shift_and_scale()
        images: Tensor = self.kl.decode(latents.to(self.device) / scale + shift, return_dict=False)[0]
        return images


def save_identity(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"_class_name": IDENTITY}))


def set_timestep_shift(model: DiTTransformer2DModel, shift: int) -> None:
    """Sets the frequencies of the timestep's sines and cosines: exp(-ln(10^4) k / (128 - shift)), k = 0..127.

    DiT's own code (models.py, TimestepEmbedder) divides by 128, diffusers' DiT (Timesteps, downscale_freq_shift = 1) by 127.
    Over t = 0..999 the features differ by 65 % of their norm, at most by 1.98 of 2, and no linear layer maps one to the other
    (best fit: 26 % left), so it cannot be folded into the weights: weights need the frequencies they were trained with.
    """
    for block in model.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = shift


def timestep_shift(model: DiTTransformer2DModel) -> int:
    return int(model.transformer_blocks[0].norm1.emb.time_proj.downscale_freq_shift)


def declared_timestep_shift(folder: Path) -> int | None:
    """The timestep shift that a model folder declares; None where it declares none, as every folder from the hub."""
    found = json.loads((folder / "config.json").read_text()).get(TIMESTEP_SHIFT)
    if found is None and (folder / "manifest.json").is_file():  # trained here, before the config said it
        return DIFFUSERS_SHIFT
    return None if found is None else int(found)


def load_dit(folder: Path) -> DiTTransformer2DModel:
    """The DiT of a folder of ours, its per-block embedders tied into one and its own label dropout switched off.

    With the dropout on, every block of diffusers' DiT would draw a label-drop mask of its own in training.
    """
    model = from_pretrained(DiTTransformer2DModel, folder)
    declared = declared_timestep_shift(folder)
    set_timestep_shift(model, DIFFUSERS_SHIFT if declared is None else declared)
    try:
        tie_embedders(model)
    except ValueError as err:
        fix = "use weights of a class-conditional DiT"
        raise StageError(str(err), code="weights-misfit", where=str(folder), fix=fix) from err
    return model


def save_dit(model: DiTTransformer2DModel, folder: Path) -> None:
    """Writes a plain diffusers folder: every block gets its own copy of the tied embedder.

    Its config declares the timesteps.
    """
    from safetensors.torch import save_file

    model.save_config(folder)
    config = json.loads((folder / "config.json").read_text()) | {TIMESTEP_SHIFT: timestep_shift(model)}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    state = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "diffusion_pytorch_model.safetensors")


def from_pretrained(cls: type[Model], folder: Path) -> Model:
    """The model of a folder in diffusers layout. Strict: a missing, extra or misshapen tensor is an error that names it."""
    loader: Any = cls
    config = {name: value for name, value in loader.load_config(folder).items() if name != TIMESTEP_SHIFT}
    with _WithoutRandomWeights():
        model: Model = loader.from_config(config)
    files = sorted(folder.glob("diffusion_pytorch_model*.safetensors")) or sorted(folder.glob("diffusion_pytorch_model*.bin"))
    tensors: dict[str, Tensor] = {}
    for path in files:
        tensors |= {_today(name): tensor for name, tensor in read_tensors(path).items()}
    copy_into(model.state_dict(), tensors, what=cls.__name__, where=str(folder))
    return model


class _WithoutRandomWeights(TorchFunctionMode):
    """Inside, torch.nn.init does nothing: weights that are loaded next need no random start, which is 10 s of a DiT-XL/2.

    Their memory is reserved and not touched. Buffers are computed as ever.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _today(name: str) -> str:
    """A tensor's name in today's diffusers: the hub's SD VAEs name the middle block's attention as before version 0.15."""
    owner, found, rest = name.partition("mid_block.attentions.0.")
    for old, new in (("query.", "to_q."), ("key.", "to_k."), ("value.", "to_v."), ("proj_attn.", "to_out.0.")):
        if found and rest.startswith(old):
            return f"{owner}{found}{new}{rest.removeprefix(old)}"
    return name
