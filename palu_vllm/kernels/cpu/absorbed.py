"""Scores of decoding queries by block-absorbed RoPE (``kernels/absorbed.py``) in vectorised torch."""

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from palu_vllm.kernels.absorbed import FLOAT32_TOLERANCE, Absorption, plan_absorption
from palu_vllm.kernels.cpu.tiles import KeySource, Tiles, scratch

SHORTEST_TILE = 16  # tokens
_plans = WeakTensorKeyDictionary()


def plan(frequencies: torch.Tensor, queries_per_kv: int, tile_tokens: int) -> Absorption | None:
    """The cheapest absorption over equal parts of a tile; found once for all the layers that share ``frequencies``."""
    known = _plans.setdefault(frequencies, {})
    if (queries_per_kv, tile_tokens) not in known:
        parts = [tokens for tokens in range(SHORTEST_TILE, tile_tokens + 1) if tile_tokens % tokens == 0]
        known[queries_per_kv, tile_tokens] = plan_absorption(frequencies, queries_per_kv, parts, FLOAT32_TOLERANCE)
    return known[queries_per_kv, tile_tokens]


class AbsorbedScores:
    """Scores of one layer. Constants are prepared once; of ``k_up`` there is a copy in the layout of its products."""

    def __init__(self, source: KeySource, up: torch.Tensor, absorption: Absorption) -> None:
        self.shape, self.source, self.absorption = source.shape, source, absorption
        fast = self.fast = 2 * absorption.fast  # numbers of a key that are rebuilt
        self.conjugated = absorption.coefficients.conj().resolve_conj().unsqueeze(1)  # [terms, 1, slow pairs]
        # up [num_groups_k, group_size_k, rank_k, head_dim] as [num_groups_k, rank_k, group_size_k * fast] and
        # [num_groups_k, group_size_k, slow, rank_k]
        self.fast_up = up[..., :fast].transpose(1, 2).flatten(2).contiguous()
        self.slow_up = up[..., fast:].transpose(2, 3).contiguous()

    @classmethod
    def where_cheaper(cls, source: KeySource, tile_tokens: int) -> "AbsorbedScores | None":
        """None where rebuilding whole keys takes fewer operations, where keys are stored whole, or normalised."""
        if source.k_up is None or source.k_norm is not None:
            return None
        absorption = plan(source.frequencies, source.shape.queries_per_kv, tile_tokens)
        return None if absorption is None else cls(source, source.k_up, absorption)

    def scores(self, paired: torch.Tensor, tiles: Tiles, latent_k: torch.Tensor) -> torch.Tensor:
        """``[num_groups_k, tiles, heads of a group, tile_tokens]``, nothing hidden yet.

        Takes ``paired [owners, num_kv_heads, queries_per_kv, head_dim]`` (``pair_up``, scaled) and ``latent_k
        [num_groups_k, tokens, rank_k]`` of the tiles' tokens.
        """
        shape = self.shape
        count, tile = tiles.positions.shape
        heads = shape.group_size_k * shape.queries_per_kv
        scores = scratch.take("scores", shape.num_groups_k, count, heads, tile)
        in_groups = paired.unflatten(1, (shape.num_groups_k, shape.group_size_k))
        parts = tile // self.absorption.tile_tokens
        starts = tiles.positions[:, :: self.absorption.tile_tokens].flatten()
        # rotations to the first token of every part, conjugated, and to every token; the second call reuses the buffer
        to_parts = self.source.angles(starts)[:, self.absorption.fast :].conj().resolve_conj()
        to_tokens = self.source.angles(tiles.positions.flatten())[:, None, : self.absorption.fast]
        for group in range(shape.num_groups_k):
            query, latent = in_groups[tiles.owner, group], latent_k[group]
            self._rebuilt(group, query, to_tokens, latent, scores[group])
            whole = query[..., self.fast :].repeat_interleave(parts, dim=0)
            slow = self._absorbed(group, whole, to_parts, latent)
            scores[group].unflatten(-1, (parts, -1)).add_(slow.unflatten(0, (count, parts)).transpose(1, 2))
        return scores

    def _rebuilt(
        self, group: int, query: torch.Tensor, angles: torch.Tensor, latent: torch.Tensor, scores: torch.Tensor
    ) -> None:
        """Writes the fast pairs' part of ``scores [tiles, heads, tile_tokens]``, where keys are rebuilt and rotated.

        Takes ``query [tiles, group_size_k, queries_per_kv, head_dim]``, the rotations ``angles [tokens, 1, fast
        pairs]`` and ``latent [tokens, rank_k]``.
        """
        shape = self.shape
        count, _, tile = scores.shape
        keys = scratch.take("keys", len(latent), shape.group_size_k, self.fast)
        torch.mm(latent, self.fast_up[group], out=keys.flatten(1))
        if self.source.k_bias is not None:
            keys.add_(self.source.k_bias.view(shape.num_groups_k, shape.group_size_k, -1)[group, :, : self.fast])
        torch.view_as_complex(keys.unflatten(-1, (-1, 2))).mul_(angles)
        # of shape [tiles, heads, group_size_k * fast], zero where a query meets another head's key: one large product
        apart = scratch.take("apart", *query.shape[:3], shape.group_size_k, self.fast).zero_()
        apart.diagonal(dim1=1, dim2=3).copy_(query[..., : self.fast].permute(0, 2, 3, 1))
        torch.bmm(apart.view(*scores.shape[:2], -1), keys.view(count, tile, -1).transpose(1, 2), out=scores)

    def _absorbed(self, group: int, query: torch.Tensor, angles: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        """The slow pairs' part, ``[parts, heads, tokens of a part]``.

        Takes ``query [parts, group_size_k, queries_per_kv, slow]``, the conjugated rotations ``angles [parts,
        slow pairs]`` to each part's first token, and ``latent [tokens, rank_k]``.
        """
        shape, basis = self.shape, self.absorption.basis
        pairs = torch.view_as_complex(query.permute(1, 2, 0, 3).unflatten(-1, (-1, 2)))
        # complex [group_size_k, queries_per_kv, terms, parts, slow pairs]
        moved = scratch.take("moved", *pairs.shape[:2], len(basis), *pairs.shape[2:], dtype=torch.complex64)
        torch.mul((pairs * angles).unsqueeze(2), self.conjugated, out=moved)
        rows = torch.view_as_real(moved).flatten(1, 3).flatten(2)
        # of shape [group_size_k * queries_per_kv * terms, parts, rank_k]
        u = scratch.take("u", rows[..., 0].numel() // len(query), len(query), shape.rank_k)
        torch.bmm(rows, self.slow_up[group], out=u.view(*rows.shape[:2], shape.rank_k))
        latents = latent.view(len(query), -1, shape.rank_k)
        products = scratch.take("products", len(query), len(u), latents.shape[1])
        torch.bmm(u.transpose(0, 1), latents.transpose(1, 2), out=products)
        if self.source.k_bias is not None:
            bias = self.source.k_bias.view(shape.num_groups_k, shape.group_size_k, -1, 1)[group, :, self.fast :]
            products.add_(torch.bmm(rows, bias).view(len(u), -1, 1).transpose(0, 1))
        summed = scratch.take("summed", len(query), len(u) // len(basis), latents.shape[1])
        return torch.sum(products.unflatten(1, (-1, len(basis))).mul_(basis), 2, out=summed)
