"""transformers' own models in float32 with a codec in their attention: what a server with that codec is held to."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedModel

from palu_vllm.format.codec.file import Codec, load_codec
from palu_vllm.kernels.codec.interface import CodecSettings
from palu_vllm.kernels.codec.reference import CodecAttention, encode_tokens
from palu_vllm.kernels.reference import visible

NAME = "codec_of_a_test"


def attention(codec: Codec) -> Callable[..., tuple[torch.Tensor, None]]:
    """An attention function of transformers: whole texts without a cache, keys and values stored and read as codes."""

    def attend(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        layer = codec.layers[module.layer_idx]
        window, cap = options.get("sliding_window"), options.get("softcap") or 0.0
        coded = CodecAttention(layer, CodecSettings(query.shape[1], scaling, window, cap, options.get("s_aux")))
        positions = torch.arange(query.shape[2])
        rows = []
        for q, k, v in zip(query, key, value, strict=True):  # [heads, tokens, dim]
            slots = encode_tokens(layer, k.transpose(0, 1), v.transpose(0, 1), positions)
            seen = visible(positions, positions, window)
            rows.append(coded.attend_slots(q.transpose(0, 1), slots, positions, seen))
        return torch.stack(rows), None

    return attend


@contextmanager
def with_codec(model: Path, codec: Path, auto: Any = AutoModelForCausalLM) -> Iterator[PreTrainedModel]:
    AttentionInterface.register(NAME, attention(load_codec(codec)))
    yield auto.from_pretrained(model, dtype=torch.float32, attn_implementation=NAME)


@torch.no_grad()
def scores(model: PreTrainedModel, request: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
    """Logits ``[tokens, vocabulary]`` of every token of the answer, given the request and those before it."""
    ids = torch.tensor([[*request, *answer]])
    return model(ids, use_cache=False, logits_to_keep=len(answer) + 1).logits[0, :-1]


def chosen(model: PreTrainedModel, request: Sequence[int], answer: Sequence[int]) -> list[int]:
    """The greedy token after the request and after every token of the answer but the last."""
    return scores(model, request, answer).argmax(-1).tolist()


def behind(model: PreTrainedModel, request: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
    """How far the logit of every token of the answer is below the largest one, ``[tokens]``; 0 where it is greedy."""
    found = scores(model, request, answer)
    return found.amax(-1) - found.gather(-1, torch.tensor(answer)[:, None])[:, 0]
