"""What learns in fine-tuning: put onto a DiT, saved alone, loaded, and folded away into a plain diffusers DiT.

difffit   biases, label table, scale factors (the paper; method/difffit.py)
bitfit    biases and label table: DiffFit without its scale factors
lora      low-rank updates of the attention's q, k, v and output projections and of both MLP layers, by peft. Neither biases
          nor the label table learn: what a class looks like changes through the blocks alone
full      everything
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ddgd_ray.errors import StageError
from ddgd_ray.method.difffit import fold_difffit, freeze_all_but, tie_embedders, trainable_state
from ddgd_ray.spec.stages import FinetuneSpec
from ddgd_ray.stages.parts.backbone import load_dit
from ddgd_ray.stages.parts.tensor_files import copy_into

ADAPTER_FILE = "adapter.safetensors"
LORA_TARGETS = r"transformer_blocks\.\d+\.(attn1\.(to_q|to_k|to_v|to_out\.0)|ff\.net\.(0\.proj|2))"


@dataclass(frozen=True)
class Adapter:
    """What learns, by name; rank and alpha belong to `lora` alone."""

    kind: str
    rank: int = 0
    alpha: int = 0

    @classmethod
    def of(cls, spec: FinetuneSpec) -> "Adapter":
        return cls(spec.adapter, spec.lora_rank, spec.lora_alpha) if spec.adapter == "lora" else cls(spec.adapter)


def attach(model: DiTTransformer2DModel, adapter: Adapter, *, seed: int = 0) -> dict[str, Tensor]:
    """The tensors that learn, by name, after `model` is prepared for the adapter; its outputs stay. seed: of LoRA's factors."""
    if adapter.kind == "lora":
        _add_lora(model, adapter, seed)
    else:
        freeze_all_but(model, adapter.kind)
    return trainable_state(model)


def fold(model: DiTTransformer2DModel) -> DiTTransformer2DModel:
    """A plain diffusers DiT with the same outputs, to rounding: the adapter is folded into the weights."""
    fold_difffit(model)
    _fold_lora(model)
    return model.eval().requires_grad_(False)


def save_adapter(folder: Path, adapter: Adapter, raw: dict[str, Tensor], ema: dict[str, Tensor]) -> None:
    """Writes the trainable tensors alone, as they are (`raw.`) and averaged (`ema.`)."""
    tensors = {f"raw.{name}": tensor for name, tensor in raw.items()} | {f"ema.{name}": tensor for name, tensor in ema.items()}
    packed = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # one entry: the file's bytes would follow the order of several, which safetensors draws anew each time
    save_file(packed, folder / ADAPTER_FILE, metadata={"adapter": json.dumps(asdict(adapter))})


def load_finetuned(backbone: Path, adapter: Path, *, weights: str) -> DiTTransformer2DModel:
    """The backbone with an adapter artifact folded into it: a plain diffusers DiT. weights: `ema` or `raw`.

    Raises StageError when the adapter was made for another model, naming the tensors.
    """
    file = adapter / ADAPTER_FILE
    try:
        with safe_open(file, framework="pt") as opened:
            described = Adapter(**json.loads((opened.metadata() or {})["adapter"]))
            tensors = {name: opened.get_tensor(name) for name in opened.keys() if name.startswith(f"{weights}.")}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError) as err:
        what = f"the adapter cannot be read: {err}"
        raise StageError(what, code="weights-damaged", where=str(file), fix="delete its artifact to make it again") from err
    model = load_dit(backbone)
    learned = {name.removeprefix(f"{weights}."): tensor for name, tensor in tensors.items()}
    copy_into(attach(model, described), learned, what=f"the {described.kind} adapter", where=str(file))
    return fold(model)


def _add_lora(model: DiTTransformer2DModel, adapter: Adapter, seed: int) -> None:
    """Adds LoRA's factors: B is zero, A is drawn from `seed` alone, and torch's global stream stays where it was."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as err:
        raise StageError(
            "adapter lora needs the package peft",
            code="missing-package",
            where="finetune.adapter",
            fix="pip install 'ddgd-ray[lora]'",
        ) from err
    tie_embedders(model)
    config = LoraConfig(r=adapter.rank, lora_alpha=adapter.alpha, target_modules=LORA_TARGETS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)  # freezes everything else


def _fold_lora(model: Any) -> None:
    updated = {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}
    for name, layer in updated.items():
        layer.merge()
        model.set_submodule(name, layer.get_base_layer())
    if updated and hasattr(model, "peft_config"):
        del model.peft_config
