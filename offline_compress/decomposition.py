"""Low-rank factors of a projection, one group of heads at a time: pure functions in float64.

Paper (Palu, section 3): ``W_g ~ up_g down_g``. Whitened by ``S`` with ``S S^T = H``, the mean of ``x x^T``:
``W_g S = U Sigma V^T``, ``up = U_r sqrt(Sigma_r)``, ``down = sqrt(Sigma_r) V_r^T S^-1``. The squared error on the data
that gave ``H`` is then the sum of the discarded squared singular values. Plain SVD is ``S = I``.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import pad

RELATIVE_DAMPING = 1e-6


@dataclass(frozen=True)
class Factors:
    """A projection ``[num_groups * full, hidden]`` as two factors, in float64.

    ``down`` is ``[num_groups * rank, hidden]``, ``up`` is ``[num_groups, rank, full]``: the group's output is
    ``(x @ down_g.T) @ up_g``. ``relative_error`` is ``|W S - up down S| / |W S|`` in the Frobenius norm.
    """

    down: torch.Tensor
    up: torch.Tensor
    relative_error: float


def whitening_factor(second_moment: torch.Tensor) -> torch.Tensor:
    """Lower triangular ``S [hidden, hidden]`` with ``S S^T = H + damping``, in the memory of ``H``.

    The damping is ``1e-6`` of the mean of the diagonal, so that it scales with the activations. Raises ValueError
    where ``H`` is not finite or all zero.
    """
    mean = second_moment.diagonal().mean()
    if not torch.isfinite(mean) or mean <= 0:
        raise ValueError("the inputs of this layer are all zero or not finite")
    second_moment.diagonal().add_(RELATIVE_DAMPING * mean)
    # H is symmetric, and its transpose has the column order that LAPACK works on in place
    factor, info = second_moment.mT, torch.empty((), dtype=torch.int32, device=second_moment.device)
    torch.linalg.cholesky_ex(factor, out=(factor, info))
    if info.item():
        raise ValueError("the second moment of this layer's inputs is not positive definite")
    return factor


def decompose_group(
    weight: torch.Tensor, rank: int, whitening: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``(up [full, rank], down [rank, hidden], all singular values)`` of one group's ``weight [full, hidden]``.

    All tensors are float64. ``whitening`` is ``S`` or None for plain SVD.
    """
    scaled = weight if whitening is None else weight @ whitening
    # LAPACK is more than twice as fast on the tall transpose: V Sigma U^T
    right, singular, left = torch.linalg.svd(scaled.T, full_matrices=False)
    if rank > len(singular):
        # a group wider than the hidden size: ranks beyond it carry nothing
        padding = (0, rank - len(singular))
        right, left, singular = pad(right, padding), pad(left.T, padding).T, pad(singular, padding)
    root = singular[:rank].sqrt()
    down = (right[:, :rank] * root).T
    if whitening is not None:
        down = torch.linalg.solve_triangular(whitening, down, upper=False, left=False)
    return left[:rank].T * root, down, singular


def decompose(weight: torch.Tensor, num_groups: int, rank: int, whitening: torch.Tensor | None = None) -> Factors:
    """Factors of a projection ``weight [num_groups * full, hidden]`` of any float dtype, equal rank in all groups."""
    downs, ups, lost, total = [], [], 0.0, 0.0
    for rows in weight.chunk(num_groups):
        up, down, singular = decompose_group(rows.double(), rank, whitening)
        ups.append(up.T)
        downs.append(down)
        energy = singular.square()
        lost, total = lost + energy[rank:].sum().item(), total + energy.sum().item()
    return Factors(torch.cat(downs), torch.stack(ups), (lost / total) ** 0.5 if total else 0.0)
