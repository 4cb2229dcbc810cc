"""The value up-projection and the value bias are folded into the output projection, by pure functions.

``O'_j = O_j v_up_{g,h}`` for every query head ``j`` of KV head ``h`` in group ``g``; attention weights sum to one, so
a value bias leaves attention as the constant ``O b_v``.
"""

from collections.abc import Iterator

import torch

FUSED_ROWS = 128


def fuse_output(
    output: torch.Tensor, value_up: torch.Tensor, num_kv_heads: int, dtype: torch.dtype
) -> Iterator[torch.Tensor]:
    """``O' [hidden, num_heads * rank_v]`` in ``dtype``, multiplied in float64, some rows at a time.

    ``output`` is ``O [hidden, num_heads * head_dim]`` of any float dtype, ``value_up`` is float64
    ``[num_groups, rank_v, group_size * head_dim]``.
    """
    num_groups, rank, full = value_up.shape
    head_dim = num_groups * full // num_kv_heads
    num_heads = output.shape[1] // head_dim
    # num_groups x rank x group_size x head_dim
    per_head = value_up.view(num_groups, rank, -1, head_dim)
    for rows in output.split(FUSED_ROWS):
        fused = output.new_empty(len(rows), num_heads * rank, dtype=dtype)
        for head, columns in enumerate(rows.split(head_dim, dim=1)):
            group, inside = divmod(head * num_kv_heads // num_heads, num_kv_heads // num_groups)
            fused[:, head * rank : (head + 1) * rank] = columns.double() @ per_head[group, :, inside].T
        yield fused


def constant_output(output: torch.Tensor, value_bias: torch.Tensor, num_kv_heads: int) -> torch.Tensor:
    """``O b_v [hidden]`` in float64 for ``value_bias [num_kv_heads * head_dim]``."""
    per_head = value_bias.double().view(num_kv_heads, 1, -1)
    heads_per_kv_head = output.shape[1] // value_bias.numel()
    repeated = per_head.expand(-1, heads_per_kv_head, -1).reshape(-1)
    return torch.cat([rows.double() @ repeated for rows in output.split(1024)])
