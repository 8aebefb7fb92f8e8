"""Pushes a second into full memories: ours against lists of tensors with a similarity matrix rebuilt for each pop.

    python -m benchmarks.memory [--quick] [--json] [--device cpu]

The baseline keeps what the public fine-tuning scripts keep: a Python list of latents per class, joined by torch.cat whenever
similarities are wanted, `pop(0)` for fifo. The self-adaptive rule (paper Eq. 7-8) is written down directly: while a list is too
long, all cosines of its rows, their sums, the greatest leaves. One matrix product gives all cosines, which is the quickest
way to write it in a line; cosine_similarity over broadcast rows is `baseline_broadcast` in the parts. Headline: max_similarity,
N = 64, 10 classes, batch 8. Goal: 50 x on a CPU, and time that grows at most linearly in N.
"""

import math
import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import measure
from benchmarks.public_scripts import ListMemory
from ddgd_ray.method.losses import per_sample_extreme
from ddgd_ray.method.memory import POP_SCORES, LatentMemory

BATCH = 8
ROOM_BYTES = 8e9


def filled(rows_ND: Tensor, num_classes: int, pop: str) -> LatentMemory:
    """Our memory with `rows_ND` in every class: one class is filled, its state stands for all."""
    device, (size, dim) = rows_ND.device, rows_ND.shape
    one = LatentMemory(1, size, dim, pop=pop, max_batch=BATCH, device=device)
    for part_BD in rows_ND.split(BATCH):
        one.push(part_BD, torch.zeros(len(part_BD), dtype=torch.int64))
    memory = LatentMemory(num_classes, size, dim, pop=pop, max_batch=BATCH, device=device)
    memory.load_state_dict(one.state_dict())  # copies broadcast over classes
    return memory


def batches(num_classes: int, dim: int, device: str, number: int) -> Callable[[], tuple[Tensor, Tensor]]:
    drawn = [(torch.randn(BATCH, dim, device=device), torch.randint(num_classes, (BATCH,))) for _ in range(number)]
    state = iter(range(10**9))
    return lambda: drawn[next(state) % number]


def compare(pop: str, size: int, num_classes: int, dim: int, device: str, rounds: int) -> dict[str, float]:
    """Seconds of one push and, for the headline's strategy, of the losses' look at one memory with its gradient."""
    rows_ND = torch.randn(size, dim, device=device)
    ours, lists = filled(rows_ND, num_classes, pop), ListMemory(len(rows_ND), num_classes, pop, rows_ND)
    draw = batches(num_classes, dim, device, 32)
    times = max(1, 1024 // size) if size < 1024 else 1

    def repeat(work: Callable[[Tensor, Tensor], object]) -> Callable[[], None]:
        return lambda: [work(*draw()) for _ in range(times)] and None

    def look(z_BD: Tensor, labels_B: Tensor) -> None:
        leaf_BD = z_BD.clone().requires_grad_()
        extreme_B, _ = per_sample_extreme(*ours.cosines(leaf_BD, labels_B), largest=False)
        extreme_B.sum().backward()

    def look_lists(z_BD: Tensor, labels_B: Tensor) -> None:
        leaf_BD = z_BD.clone().requires_grad_()
        lists.least(leaf_BD, labels_B).backward()

    works = {"ours": repeat(ours.push), "baseline": repeat(lists.push)}
    if pop == "max_similarity":
        works |= {"ours_lookup": repeat(look), "baseline_lookup": repeat(look_lists)}
    return {name: s / times for name, s in measure.alternate(works, device, rounds=rounds).items()}


def broadcast_pop_s(size: int, dim: int, device: str) -> float:
    """Seconds of one pop with cosine_similarity over (N, N, D) broadcast rows."""
    rows_MD = torch.randn(size + 1, dim, device=device)
    work = {"pop": lambda: F.cosine_similarity(rows_MD[:, None], rows_MD[None], dim=-1).sum(dim=1).argmax()}
    return measure.alternate(work, device, rounds=3)["pop"]


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Slope of log seconds over log N by least squares."""
    x, y = [math.log(size) for size in sizes], [math.log(s) for s in seconds]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def main() -> None:
    args = measure.parser(__doc__).parse_args()
    dim, rounds = (512, 2) if args.quick else (4096, 5)
    sizes, classes = ((16, 64), (10,)) if args.quick else ((16, 64, 256, 1024), (10, 100, 1000))
    seconds: dict[tuple[str, int, int], dict[str, float]] = {}
    skipped: dict[str, str] = {}
    for num_classes in classes:
        for size in sizes:
            need_bytes = 2 * 4 * num_classes * (size + BATCH) * dim
            if need_bytes > ROOM_BYTES:
                skipped[f"N={size} classes={num_classes}"] = f"both memories together need {need_bytes / 1e9:.0f} GB"
                continue
            for pop in POP_SCORES:
                seconds[pop, size, num_classes] = compare(pop, size, num_classes, dim, args.device, min(rounds, 4096 // size))
    parts: dict[str, object] = {"skipped": skipped}
    for pop in POP_SCORES:
        grown = [(size, seconds[pop, size, 10]) for size in sizes]
        parts[pop] = {
            "pushes_per_s": {f"N={n} classes={k}": round(1 / s["ours"], 1) for (p, n, k), s in seconds.items() if p == pop},
            "ratio": {
                f"N={n} classes={k}": round(s["baseline"] / s["ours"], 1) for (p, n, k), s in seconds.items() if p == pop
            },
            "exponent_of_N": {
                name: round(exponent([n for n, _ in grown], [s[name] for _, s in grown]), 2) for name in ("ours", "baseline")
            },
        }
    head = seconds["max_similarity", 64, 10]
    parts["lookup_ratio"] = {
        f"N={n} classes={k}": round(s["baseline_lookup"] / s["ours_lookup"], 1)
        for (p, n, k), s in seconds.items()
        if p == "max_similarity"
    }
    parts["lookup_s"] = {"ours": head["ours_lookup"], "baseline": head["baseline_lookup"]}
    broadcast_s = BATCH * broadcast_pop_s(64, dim, args.device)
    parts["baseline_broadcast"] = {"pushes_per_s": round(1 / broadcast_s, 2), "ratio": round(broadcast_s / head["ours"], 1)}
    ratio = head["baseline"] / head["ours"]
    name = measure.device_name(args.device)
    measure.Result(ratio, 1 / head["ours"], 1 / head["baseline"], "pushes/s", name, parts).print(args.json)


if __name__ == "__main__":
    torch.manual_seed(0)
    random.seed(0)
    main()
