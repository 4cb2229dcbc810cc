"""A tap sees, and may replace, the keys and values that attention gets after norm and RoPE, in any transformers model.

transformers looks attention up by name, so a name of our own comes before the function that the model would have used.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from offline_compress.run.errors import CompressionError

# (layer, query [batch, heads, tokens, head_dim], key [batch, kv_heads, tokens, head_dim], value likewise) -> key, value
OnAttention = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
NAME = "palu_tap_"


@contextmanager
def tapped(model: PreTrainedModel, on_attention: OnAttention) -> Iterator[None]:
    """Within it every attention layer calls ``on_attention``. Raises CompressionError where it cannot be called."""
    inner = _inner(model)
    before = model.config._attn_implementation

    def attend(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
               *args: Any, **kwargs: Any) -> Any:  # fmt: skip
        key, value = on_attention(module.layer_idx, query, key, value)
        return _function(inner, module)(module, query, key, value, *args, **kwargs)

    name = NAME + inner
    ALL_ATTENTION_FUNCTIONS.register(name, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS[inner])
    try:
        model.set_attn_implementation(name)
        yield
    finally:
        model.set_attn_implementation(before)


def _inner(model: PreTrainedModel) -> str:
    """The implementation behind the tap; eager where scores are capped, which sdpa cannot."""
    config = model.config.get_text_config()
    capped = getattr(config, "attn_logit_softcapping", None)
    if not type(model)._can_set_attn_implementation():
        raise CompressionError(
            f"{type(model).__name__} does not look its attention up by name, so its keys cannot be seen; "
            "choose another model."
        )
    return "sdpa" if model._supports_sdpa and not capped else "eager"


def _function(inner: str, module: torch.nn.Module) -> Callable[..., Any]:
    """Eager attention is a function of each model's own file."""
    if inner != "eager":
        return ALL_ATTENTION_FUNCTIONS[inner]
    return sys.modules[type(module).__module__].eager_attention_forward
