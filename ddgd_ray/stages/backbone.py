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

from ddgd_ray.errors import StageError
from ddgd_ray.method.difffit import fold_difffit, freeze_all_but, tie_embedders, trainable_state

IDENTITY = "IdentityAutoencoder"
ADAPTER_FILE = "adapter.safetensors"
Model = TypeVar("Model", bound=nn.Module)


def to_unit_range(images: Tensor) -> Tensor:
    """(B, S, S, C) uint8 -> (B, C, S, S) float32 in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """(B, C, S, S) in [-1, 1], clipped -> (B, S, S, C) uint8, rounded to nearest."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)


class Autoencoder:
    """Images to latents and back. `kl` is None when pixels are the latents."""

    def __init__(self, kl: AutoencoderKL | None, device: str = "cpu") -> None:
        self.kl = kl.to(device).eval().requires_grad_(False) if kl is not None else None
        self.device = device

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> "Autoencoder":
        config = json.loads((folder / "config.json").read_text())
        if config["_class_name"] == IDENTITY:
            return cls(None, device)
        return cls(_from_pretrained(AutoencoderKL, folder), device)

    def _shift_and_scale(self) -> tuple[Tensor | float, Tensor | float]:
        """latent = (raw - shift) * scale; per channel for our own, the one factor of the SD VAE otherwise."""
        assert self.kl is not None
        config: Any = self.kl.config
        if config.latents_mean is None:
            return 0.0, float(config.scaling_factor)
        shape = (1, -1, 1, 1)
        mean = torch.tensor(config.latents_mean, device=self.device).view(shape)
        return mean, 1 / torch.tensor(config.latents_std, device=self.device).view(shape)

    @torch.inference_mode()
    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the scaled latent, each (B, c, s, s) float32; -inf-like (-30) for pixel latents."""
        if self.kl is None:
            return images, torch.full_like(images, -30.0)
        shift, scale = self._shift_and_scale()
        dist: Any = self.kl.encode(images.to(self.device), return_dict=False)[0]
        log_scale = torch.as_tensor(scale).log()
        return (dist.mean - shift) * scale, (dist.logvar + 2 * log_scale).clamp(-30.0, 20.0)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, c, s, s) -> images (B, S, S, C) uint8."""
        if self.kl is None:
            return to_uint8(latents)
        shift, scale = self._shift_and_scale()
        return to_uint8(self.kl.decode(latents.to(self.device) / scale + shift, return_dict=False)[0])


def save_identity(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"_class_name": IDENTITY}))


def load_dit(folder: Path) -> DiTTransformer2DModel:
    """The DiT of a folder, its per-block embedders tied into one and its own label dropout switched off.

    Left as it is, every block of diffusers' DiT draws a label-drop mask of its own in training.
    """
    model = _from_pretrained(DiTTransformer2DModel, folder)
    tie_embedders(model)
    return model


def load_finetuned(backbone: Path, adapter: Path, *, weights: str) -> DiTTransformer2DModel:
    """The backbone with an adapter artifact folded into it: a plain diffusers DiT. weights: `ema` or `raw`."""
    from safetensors import safe_open

    model = load_dit(backbone)
    with safe_open(adapter / ADAPTER_FILE, framework="pt") as file:
        freeze_all_but(model, (file.metadata() or {})["adapter"])
        state = trainable_state(model)
        with torch.no_grad():
            for name, parameter in state.items():
                parameter.copy_(file.get_tensor(f"{weights}.{name}"))
    fold_difffit(model)
    return model.eval().requires_grad_(False)


def save_adapter(folder: Path, adapter: str, raw: dict[str, Tensor], ema: dict[str, Tensor]) -> None:
    """The trainable tensors alone, as they are (`raw.`) and averaged (`ema.`)."""
    from safetensors.torch import save_file

    tensors = {f"raw.{name}": tensor for name, tensor in raw.items()} | {f"ema.{name}": tensor for name, tensor in ema.items()}
    packed = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(packed, folder / ADAPTER_FILE, metadata={"adapter": adapter})


def save_dit(model: DiTTransformer2DModel, folder: Path) -> None:
    """A plain diffusers folder: every block gets its own copy of the tied embedder."""
    from safetensors.torch import save_file

    model.save_config(folder)
    state = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "diffusion_pytorch_model.safetensors")


def _from_pretrained(cls: type[Model], folder: Path) -> Model:
    """Strict: a missing, extra or misshapen tensor is an error that names it; only safetensors are read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    loader: Any = cls
    config = loader.load_config(folder)
    model: Model = loader.from_config(config)
    state: dict[str, Tensor] = {}
    try:
        for path in sorted(folder.glob("diffusion_pytorch_model*.safetensors")):
            state |= load_file(path)
    except (SafetensorError, OSError) as err:
        raise StageError(f"the weights cannot be read: {err}", where=str(folder), fix="fetch or make them again") from err
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if wrong:
        lines = "; ".join(f"{name}: expected {wanted.get(name)}, found {found.get(name)}" for name in wrong[:8])
        raise StageError(
            f"{len(wrong)} tensors do not fit {cls.__name__}: {lines}", where=str(folder), fix="use weights of this model"
        )
    model.load_state_dict(state)
    return model
