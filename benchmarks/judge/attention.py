"""Attention of any transformers model over keys and values that went through an arm, without code per family.

Registered with transformers under ``IMPLEMENTATION``. It gets queries, keys and values of a layer after RoPE and norms,
lets the arm read them back, and hands them to sdpa. All tokens of a row come in one pass without a cache, so that a
token's index is its position. What a query still sees exactly (a window of new tokens, say) is told by the arm.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from benchmarks.judge.arms.arm import CacheArm, Layer
from palu_vllm.format.kv import KV

IMPLEMENTATION = "palu_judge"


def attend(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None,
    **options,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Output ``[batch, tokens, num_heads, head_dim]`` of ``query [batch, num_heads, tokens, head_dim]``."""
    arm: CacheArm = module.config.judged_arm
    layer = Layer(int(module.layer_idx), module.config.num_hidden_layers)
    whole = KV(key.float(), value.float())
    read = KV(*(x.to(query) for x in arm.read_back(whole, layer)))
    exact = arm.exact(key.shape[2], key.device)
    if exact is None:
        return sdpa_attention_forward(module, query, read.key, read.value, attention_mask, **options)
    mask = _causal(key.shape[2], key.device) if attention_mask is None else attention_mask
    return mixed_attention(query, whole, read, exact, mask, options["scaling"]).transpose(1, 2), None


def mixed_attention(
    query: torch.Tensor, whole: KV[torch.Tensor], read: KV[torch.Tensor], exact: KV[torch.Tensor], mask: torch.Tensor,
    scale: float,
) -> torch.Tensor:  # fmt: skip
    """Softmax attention where ``exact`` says for each query which keys and values it sees as they were."""
    per_head = query.shape[1] // whole.key.shape[1]
    wide = [KV(*(x.repeat_interleave(per_head, 1) for x in pair)) for pair in (whole, read)]
    scores = [query @ pair.key.mT * scale for pair in wide]
    seen = torch.where(exact.key, *scores)
    hidden = ~mask if mask.dtype == torch.bool else None
    seen = seen.masked_fill(hidden, -torch.inf) if hidden is not None else seen + mask
    probabilities = seen.softmax(-1)
    return (probabilities * exact.value) @ wide[0].value + (probabilities * ~exact.value) @ wide[1].value


def _causal(tokens: int, device: torch.device) -> torch.Tensor:
    return torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()


AttentionInterface.register(IMPLEMENTATION, attend)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


@contextmanager
def reading_through(model: PreTrainedModel, arm: CacheArm) -> Iterator[None]:
    """Inside, every layer of the model attends to what the arm reads back."""
    config = model.config.get_text_config()
    before = model.config._attn_implementation
    config.judged_arm = arm
    model.set_attn_implementation(IMPLEMENTATION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        del config.judged_arm
