"""The factored value path: latent outputs times ``v_up`` (``O_j (v_up_{g,h} z[j])``; fused, it is in ``o_proj``).

Decoding few tokens, the reduce kernel multiplies while it joins the parts; otherwise it is a product of its own.
"""

import torch

from palu_vllm.format.shape import LayerShape

ROWS = 1024  # tokens of one product
REDUCED_BYTES = 16 * 2**20  # of v_up that the reduce kernel reads at most, from L2


def reduce_multiplies(shape: LayerShape, rows: int, element_size: int) -> bool:
    """Whether the reduce kernel applies ``v_up`` to ``rows`` tokens.

    It saves launches and the latent outputs' way through memory, but every program reads its head's ``v_up``; a product
    of its own reads each once for many tokens. Depends on shapes alone, so that a captured graph keeps its kernels.
    """
    return rows * shape.num_heads * shape.rank_v * shape.head_dim * element_size <= REDUCED_BYTES


def apply_v_up(latents: torch.Tensor, v_up: torch.Tensor, shape: LayerShape) -> torch.Tensor:
    """``[tokens, num_heads, rank_v]`` to ``[tokens, num_heads, head_dim]`` in the dtype of ``latents``.

    ``v_up [num_groups_v, rank_v, group_size_v * head_dim]`` of any floating dtype.
    """
    per_head = v_up.to(latents.dtype).unflatten(-1, (shape.group_size_v, shape.head_dim))
    # [tokens, group, KV head in the group, query head of it, rank_v]
    grouped = latents.unflatten(1, (shape.num_groups_v, shape.group_size_v, shape.queries_per_kv))
    return torch.einsum("tghqr,grhd->tghqd", grouped, per_head).flatten(1, 3)


def write_values(
    latents: torch.Tensor, v_up: torch.Tensor, out: torch.Tensor, query_start_loc: torch.Tensor, shape: LayerShape
) -> None:
    """``out [tokens, num_heads, head_dim]`` from ``latents [tokens, num_heads, rank_v]``, some tokens at a time.

    Rows past the last query are left alone; which they are is read on the device.
    """
    is_query = torch.arange(len(out), device=out.device) < query_start_loc[-1]
    for some, latent, valid in zip(out.split(ROWS), latents.split(ROWS), is_query.split(ROWS), strict=True):
        values = apply_v_up(latent, v_up, shape).to(out.dtype)
        some.copy_(torch.where(valid[:, None, None], values, some))
