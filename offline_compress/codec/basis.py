"""The basis in which bits can follow variances, and the decoder that it makes with a format.

With ``C`` the covariance and ``A`` the metric of a group, ``A^1/2 C A^1/2 = U L U^T``: in numbers ``U^T A^1/2 x`` the
loss is the plain squared error, and their variances are ``L``. Within a tier numbers are spread evenly by an orthogonal
matrix, so that all get the same error; each is scaled by ``L^-1/4`` before, which makes the sum of losses least:
``sum(l_i / a_i^2) mean(a_i^2)`` has its minimum ``(sum sqrt(l_i))^2 / n`` at ``a_i^2 = sqrt(l_i)``.
"""

from dataclasses import dataclass

import torch

from palu_vllm.format.codec.levels import distortion, unit
from palu_vllm.format.latent_format import CodedFormat
from palu_vllm.format.mixing import mixing_of_tiers

DAMPING = 0.1  # of the mean of the metric's diagonal: what few samples say of its small directions is noise
FLOOR = 1e-9  # of the largest variance


@dataclass(frozen=True)
class Basis:
    """``variances [groups, width]`` falling, ``vectors [groups, width, width]``: columns ``A^-1/2 U``; float64."""

    variances: torch.Tensor
    vectors: torch.Tensor

    @property
    def width(self) -> int:
        return self.variances.shape[1]


def basis(covariance: torch.Tensor, metric: torch.Tensor) -> Basis:
    """That of ``covariance`` and ``metric [groups, width, width]``."""
    mean = metric.diagonal(dim1=1, dim2=2).mean(-1)
    one = torch.eye(metric.shape[-1], dtype=torch.float64)
    # a metric of zeros, of a layer that no answer depends on, is the plain one
    damped = torch.where((mean > 0)[:, None, None], metric + DAMPING * mean[:, None, None] * one, one)
    strength, axes = torch.linalg.eigh(damped)
    root, inverse = (axes * strength[:, None] ** power @ axes.mT for power in (0.5, -0.5))
    variances, vectors = torch.linalg.eigh(root @ covariance @ root)
    variances, vectors = variances.flip(1), vectors.flip(2)
    variances = variances.clamp(min=FLOOR * variances[:, :1].clamp(min=torch.finfo(torch.float64).tiny))
    return Basis(variances, inverse @ vectors)


def decoder(of: Basis, form: CodedFormat) -> torch.Tensor:
    """``D [groups, width, rank]`` float32 for levels of ``form``; an orthogonal matrix where 16 bits are stored."""
    if not form.is_quantized:
        return torch.linalg.qr(of.vectors).Q.float()
    scales, start = [], 0
    for tier in form.tiers:
        spread = of.variances[:, start : start + tier.size].sqrt()
        shape = (spread / spread.mean(-1, keepdim=True)).sqrt()
        scales.append(spread / shape)
        start += tier.size
    steps = torch.cat([torch.full((tier.size,), unit(tier.bits), dtype=torch.float64) for tier in form.tiers])
    columns = of.vectors[..., : form.rank] * torch.cat(scales, -1)[:, None]
    return (columns @ mixing_of_tiers(form.tiers) * steps).float()


def loss(of: Basis, form: CodedFormat) -> float:
    """What coding with ``form`` costs to second order, per token."""
    return sum(float(each) for each in tier_losses(of, form))


def tier_losses(of: Basis, form: CodedFormat) -> list[torch.Tensor]:
    """The share of every tier, summed over groups."""
    found, start = [], 0
    for tier in form.tiers:
        roots = of.variances[:, start : start + tier.size].sqrt().sum(-1)
        found.append(0.5 * distortion(tier.bits) * (roots.square() / tier.size).sum())
        start += tier.size
    return found
