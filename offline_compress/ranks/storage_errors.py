"""What every way of storing the keys or the values of a layer costs in attention error: a table over ranks and tiers.

The factors of one decomposition at full rank serve all ranks, because latents are ordered by energy.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch

from offline_compress.calibration.probe import AttentionProbe, rotate
from offline_compress.factors.clip_ratio import best_clip_ratio
from offline_compress.factors.decomposition import Factors
from palu_vllm.format.latent_format import UNQUANTIZED, LatentFormat, Tier
from palu_vllm.format.packing import rounded

PLAIN_BITS = (8, 4, 3, 2)  # of caches that only quantize, one scale per token and head


@dataclass(frozen=True)
class Storage:
    """How a latent of one group lies in the cache: its bytes, and what makes the mixing ``[rank, rank]`` before it, if
    any. Of all ways to store a layer, these matrices together would be larger than the layer.
    """

    form: LatentFormat
    mixing: Callable[[], torch.Tensor] | None = None
    searches_clip: bool = False

    def read_back(self, latents: torch.Tensor, up: torch.Tensor | None = None) -> torch.Tensor:
        """``latents [tokens, groups, rank]`` as they are read again; ``up [groups, rank, full]`` rebuilds from them."""
        if not any(tier.is_quantized for tier in self.form.tiers):
            return latents
        if self.mixing is None:
            return rounded(latents, self._clipped(latents, up))
        mixing = self.mixing().to(latents)
        mixed = latents @ mixing.T
        return rounded(mixed, self._clipped(mixed, None if up is None else mixing @ up)) @ mixing

    def _clipped(self, latents: torch.Tensor, up: torch.Tensor | None) -> LatentFormat:
        if not self.searches_clip:
            return self.form
        return replace(self.form, clip=best_clip_ratio(latents, up, self.form))


def unrounded(rank: int) -> Storage:
    """Latents as they are."""
    return Storage(LatentFormat((Tier(rank, UNQUANTIZED),), "float32"))


@dataclass(frozen=True)
class Projected:
    """Keys or values of calibration tokens, with all factors of their projection.

    ``whole [num_kv_heads, tokens, head_dim]`` is exact and without bias, ``latents [tokens, groups, full]`` and
    ``up [groups, full, full]`` give it at any rank: ``latents[..., :r] @ up[:, :r]``, or with ``fitted[r]`` instead.
    """

    whole: torch.Tensor
    latents: torch.Tensor
    up: torch.Tensor
    fitted: Mapping[int, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        factors: Factors,
        inputs: torch.Tensor,
        whole: torch.Tensor,
        fitted: Mapping[int, torch.Tensor] = MappingProxyType({}),
    ) -> "Projected":
        """``factors`` are those of full rank, ``inputs [tokens, hidden]`` what is projected, ``fitted`` as above."""
        latents = (inputs @ factors.down.to(inputs).T).unflatten(-1, (len(factors.up), -1))
        return cls(whole, latents, factors.up.to(inputs), {rank: up.to(inputs) for rank, up in fitted.items()})

    def of_rank(self, rank: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Latents ``[tokens, groups, rank]`` and what rebuilds from them; at full rank, heads are stored without it."""
        groups, full, _ = self.up.shape
        if rank == full:
            return self.whole.transpose(0, 1).reshape(-1, groups, full), None
        return self.latents[..., :rank], self.fitted.get(rank, self.up[:, :rank])

    def stored(self, rank: int, storage: Storage) -> torch.Tensor:
        """``whole`` as attention sees it with these latents."""
        latents, up = self.of_rank(rank)
        read = storage.read_back(latents, up)
        rebuilt = read if up is None else torch.einsum("tgr,grf->tgf", read, up)
        return rebuilt.reshape(-1, *self.whole[:, 0].shape).transpose(0, 1)


def storage_errors(
    projected: Projected, error: Callable[[torch.Tensor], float], storages: Sequence[Sequence[Storage]]
) -> torch.Tensor:
    """``error(stored keys or values)`` for every storage, float64 in the order of ``storages [ranks][tiers]``."""
    rows = [[error(projected.stored(one.form.rank, one)) for one in row] for row in storages]
    return torch.tensor(rows, dtype=torch.float64)


def plain_errors(probe: AttentionProbe) -> torch.Tensor:
    """Errors of keys and values together, with rotated keys and values of ``PLAIN_BITS`` per token and head."""
    errors = []
    for bits in PLAIN_BITS:
        plain = Storage(LatentFormat((Tier(probe.keys.shape[-1], bits),), "float32"))
        keys = plain.read_back(rotate(probe.keys, probe.rotary))
        errors.append(probe.rotated_key_error(keys) + probe.value_error(plain.read_back(probe.values)))
    return torch.tensor(errors, dtype=torch.float64)
