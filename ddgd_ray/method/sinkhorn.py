"""Entropic optimal transport between two small weighted clouds of points.

Shapes: N sources, K targets, D flat latent. All weights are positive and sum to 1.
"""

import torch
from torch import Tensor


def squared_costs(x_ND: Tensor, y_KD: Tensor) -> Tensor:
    """Half the squared Euclidean distances (N, K), by differences: exact where two points nearly meet."""
    return 0.5 * (x_ND[:, None] - y_KD[None]).square().sum(dim=2)


def transport_plan(cost_NK: Tensor, source_N: Tensor, target_K: Tensor, *, epsilon: float, num_iterations: int) -> Tensor:
    """The plan (N, K) of Sinkhorn's iteration (Cuturi 2013, Alg. 1), in the log domain.

    epsilon: weight of the entropy, in units of the mean cost, so that one value serves latents of any size. The columns' sums
    are target_K exactly, the rows' sums approach source_N with the iterations. Raises ValueError for weights that are not
    positive or do not sum to 1, or for an epsilon that is not positive.
    """
    for name, weights in (("source", source_N), ("target", target_K)):
        if not (weights > 0).all() or abs(float(weights.sum()) - 1) > 1e-4:
            raise ValueError(f"{name} weights: expected positive numbers that sum to 1, got a sum of {float(weights.sum()):g}")
    if epsilon <= 0 or num_iterations < 1:
        raise ValueError(f"expected epsilon > 0 and 1 iteration or more, got {epsilon:g} and {num_iterations}")
    mean = (source_N @ cost_NK.detach() @ target_K).clamp_min(torch.finfo(cost_NK.dtype).tiny)
    score_NK = -cost_NK / (epsilon * mean)
    row_N, column_K = torch.zeros_like(source_N), torch.zeros_like(target_K)
    for _ in range(num_iterations):
        row_N = source_N.log() - (score_NK + column_K).logsumexp(dim=1)
        column_K = target_K.log() - (score_NK + row_N[:, None]).logsumexp(dim=0)
    return (score_NK + row_N[:, None] + column_K).exp()


def transport_cost(
    x_ND: Tensor, y_KD: Tensor, source_N: Tensor, target_K: Tensor, *, epsilon: float, num_iterations: int
) -> Tensor:
    """sum_nk plan_nk |x_n - y_k|^2 / 2, 0-d, the plan held fixed.

    Its gradient in x_n is sum_k plan_nk (x_n - y_k): by the envelope theorem that of the regularised problem once the iteration
    has converged (Peyre & Cuturi 2019, Prop. 9.2), and a barycentric pull before.
    """
    cost_NK = squared_costs(x_ND, y_KD)
    with torch.no_grad():
        plan_NK = transport_plan(cost_NK, source_N, target_K, epsilon=epsilon, num_iterations=num_iterations)
    return (plan_NK * cost_NK).sum()
