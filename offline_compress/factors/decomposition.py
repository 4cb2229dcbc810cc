"""Low-rank factors of a projection, one group of heads at a time: pure functions in float64.

Paper (Palu, section 3): ``W_g ~ up_g down_g`` from the truncated SVD ``W_g S = U Sigma V^T`` with ``S S^T = H``, the
mean of ``x x^T``: ``up = U_r sqrt(Sigma_r)``, ``down = sqrt(Sigma_r) V_r^T S^-1``. The squared error on the data that
gave ``H`` is then the sum of the discarded squared singular values. Plain SVD is ``S = I``.

Neither ``S`` nor ``V`` is needed: ``U`` and ``Sigma^2`` are eigenvectors and eigenvalues of ``W_g H W_g^T``, and
``sqrt(Sigma_r) V_r^T S^-1`` is ``Sigma_r^-1/2 U_r^T W_g``. That is a matrix of the group's width instead of the hidden
size times it, worked on in place. What it misses lies below ``1e-7`` of the largest singular value
(float64 has 16 digits, squares need twice as many): less than any dtype of weights can say.

Where an error ``e`` of the group's outputs costs ``e^T A e`` (``attention_weights.py``), the same is done to
``A^1/2 W_g``, and ``up = A^-1/2 U_r sqrt(Sigma_r)``: what is discarded is then the expected cost.
"""

from dataclasses import dataclass

import torch

from offline_compress.run.stopwatch import part
from offline_compress.run.workers import in_order

RELATIVE_DAMPING = 1e-6
# rows of a projection that are widened to float64 at a time
BLOCK_ROWS = 512


@dataclass(frozen=True)
class Factors:
    """A projection ``[num_groups * full, hidden]`` as two factors, in float64.

    ``down`` is ``[num_groups * rank, hidden]``, ``up`` is ``[num_groups, rank, full]``: the group's output is
    ``(x @ down_g.T) @ up_g``. ``relative_error`` is ``|A^1/2 (W - up down) S| / |A^1/2 W S|`` in the Frobenius norm.
    """

    down: torch.Tensor
    up: torch.Tensor
    relative_error: float


def damp(second_moment: torch.Tensor) -> torch.Tensor:
    """``H [hidden, hidden]`` with damping added in place, so that directions without data keep their weights' order.

    The damping is ``1e-6`` of the mean of the diagonal, so that it scales with the activations. Raises ValueError
    where ``H`` is not finite or all zero.
    """
    mean = second_moment.diagonal().mean()
    if not torch.isfinite(mean) or mean <= 0:
        raise ValueError("the inputs of this layer are all zero or not finite")
    second_moment.diagonal().add_(RELATIVE_DAMPING * mean)
    return second_moment


def gram_matrix(weight: torch.Tensor, second_moment: torch.Tensor | None) -> torch.Tensor:
    """Lower triangle of ``W H W^T [full, full]`` in float64, in the column order that LAPACK works on in place.

    ``weight [full, hidden]`` has any float dtype, ``H`` is float64 or None for the identity.
    """
    blocks = weight.split(BLOCK_ROWS)
    gram = torch.zeros(len(weight), len(weight), dtype=torch.float64, device=weight.device).mT
    for i, rows in enumerate(blocks):
        scaled = rows.double() if second_moment is None else rows.double() @ second_moment
        for j, others in enumerate(blocks[: i + 1]):
            first, second = i * BLOCK_ROWS, j * BLOCK_ROWS
            gram[first : first + len(rows), second : second + len(others)] = scaled @ others.double().T
    return gram


def symmetric_root(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``A^1/2`` and ``A^-1/2 [full, full]`` of a positive semidefinite float64 ``A``, damped as :func:`damp` does.

    Where ``A`` is zero (nobody reads the group) both are the identity. Raises ValueError where ``A`` is not finite.
    """
    mean = weights.diagonal().mean()
    if not torch.isfinite(mean):
        raise ValueError("the attention of this layer is not finite")
    if mean <= 0:
        return torch.eye(len(weights)).to(weights), torch.eye(len(weights)).to(weights)
    energy, vectors = torch.linalg.eigh(weights)
    root = (energy.clamp_(min=0) + RELATIVE_DAMPING * mean).sqrt_()
    return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T


def weighted_gram(
    weight: torch.Tensor, second_moment: torch.Tensor | None, root: torch.Tensor | None = None
) -> torch.Tensor:
    """Lower triangle of ``A^1/2 W H W^T A^1/2 [full, full]``, in the column order of :func:`gram_matrix`."""
    gram = gram_matrix(weight, second_moment)
    if root is None:
        return gram
    whole = gram.tril()
    whole += gram.tril(-1).T
    return (root @ whole @ root).T


def decompose_group(
    weight: torch.Tensor, rank: int, second_moment: torch.Tensor | None, weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``(up [full, rank], down [rank, hidden], all squared singular values)`` of one group's ``weight [full, hidden]``.

    ``weight`` has any float dtype, ``second_moment`` is ``H`` or None for plain SVD, ``weights`` is ``A [full, full]``
    or None for the identity; the results are float64.
    """
    root, inverse = (None, None) if weights is None else symmetric_root(weights)
    vectors = weighted_gram(weight, second_moment, root)
    energy = vectors.new_empty(len(weight))
    torch.linalg.eigh(vectors, UPLO="L", out=(energy, vectors))
    energy = energy.flip(0).clamp_(min=0)
    left = vectors[:, -rank:].flip(1)
    scale = energy[:rank] ** 0.25
    projected = left if root is None else root @ left
    down = left.new_zeros(rank, weight.shape[1])
    for rows, own in zip(weight.split(BLOCK_ROWS), projected.split(BLOCK_ROWS), strict=True):
        down.addmm_(own.T, rows.double())
    # a direction without energy has no latent
    down.div_(scale.where(scale > 0, torch.inf)[:, None])
    up = left if inverse is None else inverse @ left
    return up.mul_(scale), down, energy


def decompose(
    weight: torch.Tensor,
    num_groups: int,
    rank: int,
    second_moment: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
) -> Factors:
    """Factors of a projection ``weight [num_groups * full, hidden]`` of any float dtype, equal rank in all groups.

    ``weights [num_groups, full, full]`` holds ``A`` of each group.
    """
    full, hidden = weight.shape[0] // num_groups, weight.shape[1]
    downs = torch.empty(num_groups, rank, hidden, dtype=torch.float64, device=weight.device)
    ups, lost, total = downs.new_empty(num_groups, rank, full), 0.0, 0.0
    with part("svd"):
        found = in_order(
            lambda rows, own: decompose_group(rows, rank, second_moment, own),
            weight.chunk(num_groups),
            [None] * num_groups if weights is None else weights,
        )
        for group, (up, down, energy) in enumerate(found):
            downs[group], ups[group] = down, up.T
            lost, total = lost + energy[rank:].sum().item(), total + energy.sum().item()
    return Factors(downs.flatten(0, 1), ups, (lost / total) ** 0.5 if total else 0.0)


def discarded_energy(
    weight: torch.Tensor,
    num_groups: int,
    second_moment: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """What :func:`decompose` loses at every rank from 0 to full, squared: ``[full + 1]`` float64."""
    lost = torch.zeros(weight.shape[0] // num_groups + 1, dtype=torch.float64)
    with part("svd"):
        found = in_order(
            lambda rows, own: group_energy(rows, second_moment, own),
            weight.chunk(num_groups),
            [None] * num_groups if weights is None else weights,
        )
        for energy in found:
            lost[:-1] += energy.cumsum(0).flip(0).cpu()
    return lost


def group_energy(
    weight: torch.Tensor, second_moment: torch.Tensor | None, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """The squared singular values of :func:`decompose_group`, ascending: ``[full]`` float64."""
    root = None if weights is None else symmetric_root(weights)[0]
    return torch.linalg.eigvalsh(weighted_gram(weight, second_moment, root), UPLO="L").clamp_(min=0)
