"""What a stage asks of its device: memory within the job's own share, compiled functions, settings that are put back."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ddgd_ray.stages.base import Context

log = logging.getLogger(__name__)

PIXELS = 1 << 21
"""Pixels that the SD autoencoder may hold at once: 32 images of 256 px. Its encoder takes 2.6 kB a pixel, 5.4 GB in all."""


def rows_within(pixels: int, size: int, *, most: int) -> int:
    """The number of images of `size` px a side whose pixels fit into `pixels`: at most `most`, at least one."""
    return max(1, min(most, pixels // size**2))


def free_bytes(ctx: Context) -> int:
    """Bytes of a GPU's memory that are free and within the job's own share of the card.

    Jobs that share a card each see all that is free: a job that holds a quarter of it counts a quarter of its memory.
    """
    free, total = torch.cuda.mem_get_info(ctx.device)
    return within_share(free, total, share=float(ctx.held.get("gpus", 1.0) or 1.0))


def within_share(free: int, total: int, *, share: float) -> int:
    """The free bytes, but no more than `share` of all; share: GPUs that the job holds, a whole card for 1 and more."""
    return min(free, int(total * min(1.0, share)))


def compiled(function: Callable[..., Any], ctx: Context) -> Callable[..., Any]:
    """The function through torch.compile where ctx wants it. A compiler that fails is logged, and the function runs plain."""
    if not ctx.compiled:
        return function
    fast = torch.compile(function)
    is_broken = False

    def call(*args: Any) -> Any:
        nonlocal is_broken
        if not is_broken:
            try:
                return fast(*args)
            except Exception as err:
                # torch._dynamo is imported by the first compilation only
                if not type(err).__module__.startswith(("torch._dynamo", "torch._inductor", "triton")):
                    raise
                is_broken = True
                log.warning("torch.compile failed, going on without it: %s: %s", type(err).__name__, str(err)[:300])
        return function(*args)

    return call


@contextmanager
def cudnn_benchmark() -> Iterator[None]:
    """cuDNN times its kernels for each new shape inside: it pays for few shapes used thousands of times, and for no others."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def release() -> None:
    """Gives memory that nothing uses any more back to the GPU, for other jobs on it."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
