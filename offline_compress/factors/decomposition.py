"""Low-rank factors of one group of heads of a projection: pure functions in float64.

Paper (Palu, section 3): ``W_g ~ up_g down_g`` from the truncated SVD ``W_g S = U Sigma V^T`` with ``S S^T = H``, the
mean of ``x x^T``: ``up = U_r sqrt(Sigma_r)``, ``down = sqrt(Sigma_r) V_r^T S^-1``. The squared error on the data that
gave ``H`` is then the sum of the discarded squared singular values. Plain SVD is ``S = I``.

Neither ``S`` nor ``V`` is needed: ``U`` and ``Sigma^2`` are eigenvectors and eigenvalues of ``W_g H W_g^T``, and
``sqrt(Sigma_r) V_r^T S^-1`` is ``Sigma_r^-1/2 U_r^T W_g``. That is a matrix of the group's width instead of the hidden
size times it, worked on in place. What it misses lies below ``1e-7`` of the largest singular value
(float64 has 16 digits, squares need twice as many): less than any dtype of weights can say.

Where an error ``e`` of the group's outputs costs ``e^T A e`` (``error_metric.py``), the same is done to
``A^1/2 W_g``, and ``up = A^-1/2 U_r sqrt(Sigma_r)``: what is discarded is then the expected cost.
"""

from dataclasses import dataclass

import torch

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


def symmetric_root(error_metric: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``A^1/2`` and ``A^-1/2 [full, full]`` of a positive semidefinite float64 ``A``, damped as :func:`damp` does.

    Where ``A`` is zero (nobody reads the group) both are the identity. Raises ValueError where ``A`` is not finite.
    """
    mean = error_metric.diagonal().mean()
    if not torch.isfinite(mean):
        raise ValueError("the attention of this layer is not finite")
    if mean <= 0:
        identity = torch.eye(len(error_metric)).to(error_metric)
        return identity, identity.clone()
    energy, vectors = torch.linalg.eigh(error_metric)
    root = (energy.clamp_(min=0) + RELATIVE_DAMPING * mean).sqrt_()
    return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T


def weighted_gram(gram: torch.Tensor, root: torch.Tensor | None = None) -> torch.Tensor:
    """Lower triangle of ``A^1/2 W H W^T A^1/2 [full, full]``, a new matrix in the column order of ``gram``."""
    if root is None:
        return gram.clone()
    whole = gram.tril()
    whole += gram.tril(-1).T
    return (root @ whole @ root).T


def decompose_group(
    weight: torch.Tensor, rank: int, gram: torch.Tensor, error_metric: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``(up [full, rank], down [rank, hidden], all squared singular values)`` of one group's ``weight [full, hidden]``.

    ``weight`` has any float dtype, ``gram`` is that of :func:`gram_matrix`, ``error_metric`` is ``A [full, full]`` or
    None for the identity; the results are float64.
    """
    root, inverse = (None, None) if error_metric is None else symmetric_root(error_metric)
    vectors = weighted_gram(gram, root)
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


def group_energy(gram: torch.Tensor, error_metric: torch.Tensor | None = None) -> torch.Tensor:
    """The squared singular values of :func:`decompose_group`, ascending: ``[full]`` float64."""
    root = None if error_metric is None else symmetric_root(error_metric)[0]
    return torch.linalg.eigvalsh(weighted_gram(gram, root), UPLO="L").clamp_(min=0)
