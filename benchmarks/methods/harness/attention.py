"""Attention of models whose cache is a ``MethodCache``, registered with transformers under ``IMPLEMENTATION``.

A step attends to what each request's store gives back of earlier steps, and to its own tokens uncompressed and
causally; then the store takes them. So a prompt attends to itself uncompressed, as in all the papers, and is
compressed at its end. Requests are attended to one by one: nothing of one request reaches another, and padding is
neither stored nor attended to.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from benchmarks.methods.harness.cache import Step
from benchmarks.methods.harness.interface import Layer, Store, Tokens, expect

IMPLEMENTATION = "kv_cache_methods"


def grouped_attention(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, past: int, scale: float
) -> torch.Tensor:
    """``queries [num_heads, n, head_dim]`` over ``keys, values [num_kv_heads, past + n, head_dim]``.

    Query i sees the first ``past + i + 1`` tokens. Query heads of a KV head are put side by side; nothing is repeated
    but the mask.
    """
    num_heads, length, _ = queries.shape
    per_kv = num_heads // keys.shape[0]
    seen = torch.ones(length, past + length, dtype=torch.bool, device=queries.device).tril(past).repeat(per_kv, 1)
    side_by_side = queries.unflatten(0, (-1, per_kv)).flatten(1, 2)  # [num_kv_heads, per_kv * n, head_dim]
    out = scaled_dot_product_attention(side_by_side, keys, values, attn_mask=seen, scale=scale)
    return out.unflatten(1, (per_kv, length)).flatten(0, 1)


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: Step,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float,
    *,
    scaling: float,
    position_ids: torch.Tensor,
    sliding_window: int | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Output ``[batch, length, num_heads, head_dim]`` of ``query [batch, num_heads, length, head_dim]``.

    ``key`` is what ``MethodCache.update`` returned; ``attention_mask`` bool ``[batch, tokens so far]`` or None.
    Raises ValueError beyond a sliding window, for dropout, and where the cache is another one.
    """
    expect(isinstance(key, Step), f"attention {IMPLEMENTATION!r} needs past_key_values to be a MethodCache")
    expect(not dropout, "dropout is not supported by benchmarks.methods; call model.eval()")
    inside = sliding_window is None or int(position_ids.max()) < sliding_window
    expect(inside, f"benchmarks.methods has no sliding windows, and a position is beyond {sliding_window}")
    batch, num_heads, length, head_dim = query.shape
    out = query.new_zeros(batch, length, num_heads, head_dim)
    for request in range(batch):
        real = slice(None) if attention_mask is None else attention_mask[request, -length:].bool()
        positions = position_ids[request % position_ids.shape[0]][real]
        tokens = Tokens(
            key.keys[request][:, real],
            value[request][:, real],
            query[request][:, real],
            positions.expand(value.shape[1], -1),
        )
        out[request, real] = _step(tokens, key.stores[request], key.owned, scaling).transpose(0, 1)
    return out, None


def _step(tokens: Tokens, store: Store, owned: bool, scale: float) -> torch.Tensor:
    """``[num_heads, n, head_dim]``; a layer that does not own its store reads one that has taken this step already."""
    keys, values = (part.to(tokens.queries) for part in store.read())
    past = keys.shape[1]
    if owned:
        keys, values = torch.cat([keys, tokens.keys], 1), torch.cat([values, tokens.values], 1)
        store.append(tokens)
    else:
        past -= tokens.queries.shape[1]
    return grouped_attention(tokens.queries, keys, values, past, scale)


def _padding_mask(*args, attention_mask: torch.Tensor | None = None, **kwargs) -> torch.Tensor | None:
    """transformers' mask function: which tokens are no padding, ``[batch, tokens so far]``."""
    return attention_mask


AttentionInterface.register(IMPLEMENTATION, attend)
AttentionMaskInterface.register(IMPLEMENTATION, _padding_mask)


def layers_of(model: PreTrainedModel, dtype: torch.dtype) -> list[Layer]:
    """The facts of each layer; full-precision numbers are stored as ``dtype``."""
    config, rotary = model.config, model.get_decoder().rotary_emb
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    def rotation(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        anchor = torch.empty(0, device=positions.device)  # transformers takes device and dtype from it
        cos, sin = rotary(anchor, positions.reshape(1, -1))
        return tuple(table[0].reshape(*positions.shape, table.shape[-1]) for table in (cos, sin))

    return [
        Layer(
            index=index,
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=head_dim,
            dtype=dtype,
            rotation=rotation,
            scale=head_dim**-0.5,
        )
        for index in range(config.num_hidden_layers)
    ]


@contextmanager
def methods_attention(model: PreTrainedModel, implementation: str = IMPLEMENTATION) -> Iterator[None]:
    """The model attends through stores inside, or by another implementation, and as before afterwards."""
    before = model.config._attn_implementation
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
