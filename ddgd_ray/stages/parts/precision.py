"""The number formats of matrix products and convolutions: what a spec's `dtype` means on each device."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def float32_products(dtype: str) -> Iterator[None]:
    """Products and convolutions of float32 tensors use TF32 where dtype is `tf32`, and full float32 otherwise; on a GPU.

    torch leaves TF32 on for convolutions and off for products unless it is told, so both are set. The backward pass belongs
    inside: it looks at the setting anew.
    """
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = dtype == "tf32"
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])


@contextmanager
def arithmetic(dtype: str, device: str) -> Iterator[None]:
    """A forward pass computes its products and convolutions in this dtype; everything else stays float32."""
    kind = torch.device(device).type
    with float32_products(dtype), torch.autocast(kind, torch.bfloat16) if dtype == "bfloat16" else nullcontext():
        yield
