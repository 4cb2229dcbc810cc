"""One pass over the samples fills the moments of every layer: forward for keys and values, backward for the metric.

Samples lie at positions spread over the context, behind a first token at position 0, where texts begin. RoPE scores
depend on distances alone, so a short sample far from the start shows what a long text has there.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from offline_compress.codec.moments import LayerMoments, SideMoments, default_group_size
from offline_compress.codec.tap import tapped
from offline_compress.run.errors import CompressionError
from palu_vllm.format.codec.positions import BLOCK, features
from palu_vllm.format.kv import KV

FIRST_TEXTS = 256  # texts of one token, for the means of first tokens
TEXTS_AT_ONCE = 64


@dataclass
class Collected:
    """The moments of layers by their numbers, and the model's sets of frequencies ``{name: [F]}``, float64."""

    frequencies: dict[str, torch.Tensor]
    layers: dict[int, LayerMoments] = field(default_factory=dict)


def rope_frequencies(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Every set of frequencies, in radians per token, that a module of the model turns by; none without RoPE."""
    found: dict[str, torch.Tensor] = {}
    for name, buffer in model.named_buffers():
        if name.endswith("inv_freq") and buffer.ndim == 1:
            values = buffer.detach().double().cpu()
            if not any(torch.equal(values, other) for other in found.values()):
                found[name] = values
    return found


def sample_positions(number: int, of: int, seqlen: int, context: int, generator: torch.Generator) -> torch.Tensor:
    """Positions ``[seqlen]`` of sample ``number``: 0, then a run from a place in its own stretch of the context."""
    place = (number + torch.rand(1, generator=generator).item()) / of
    positions = torch.arange(seqlen) + int(place * max(0, context - seqlen))
    positions[0] = 0
    return positions


class Collector:
    """Sees every attention layer of a model and adds to ``collected``."""

    def __init__(self, model: PreTrainedModel, group_size: int | None) -> None:
        self.model, self.group_size = model, group_size
        self.collected = Collected(rope_frequencies(model))
        self._features: dict[str, torch.Tensor] = {}

    def moments(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> LayerMoments:
        """Those of a layer, from its first sight on."""
        if layer not in self.collected.layers:
            (kv_heads, head_dim), value_dim, heads = (key.shape[1], key.shape[3]), value.shape[3], query.shape[1]
            size = self.group_size or default_group_size(kv_heads, heads, max(head_dim, value_dim))
            if kv_heads % size:
                raise CompressionError(f"group size {size} does not divide the {kv_heads} KV heads of layer {layer}.")
            sides = KV(head_dim, value_dim).map(lambda width: SideMoments.zeros(kv_heads // size, size * width))
            self.collected.layers[layer] = LayerMoments(kv_heads, head_dim, value_dim, heads, sides)
        return self.collected.layers[layer]

    def sample(
        self, tokens: torch.Tensor, positions: torch.Tensor, generator: torch.Generator, gradients: bool = True
    ) -> None:
        """Adds one sample, ``tokens``, ``positions [seqlen]``; without ``gradients`` it leaves the metric alone."""
        blocks = positions[1:] // BLOCK
        self._features = {name: features(each, blocks) for name, each in self.collected.frequencies.items()}
        device = self.model.device
        inputs = {
            "input_ids": tokens[None].to(device),
            "position_ids": positions[None].to(device),
            "attention_mask": torch.ones(1, len(tokens), dtype=torch.long, device=device),
            "use_cache": False,
        }
        embeddings = self.model.get_input_embeddings()
        handle = embeddings.register_forward_hook(lambda _module, _inputs, output: output.requires_grad_(gradients))
        try:
            with torch.set_grad_enabled(gradients), tapped(self.model, self._see):
                # logits of one token are enough where none is drawn
                logits = self.model(**inputs, logits_to_keep=0 if gradients else 1).logits[0]
                if gradients:
                    said_by_itself(logits, generator).backward()
        finally:
            handle.remove()

    def _see(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        moments = self.moments(layer, query, key, value)
        sides = moments.sides.map(lambda side: len(side.total))
        moments.add(_rows(key.detach(), sides.key)[1:], _rows(value.detach(), sides.value)[1:], self._features)
        for tensor, side in ((key, moments.sides.key), (value, moments.sides.value)):
            if tensor.requires_grad:
                tensor.register_hook(_adding(side))
        return key, value

    def first_tokens(self, tokens: torch.Tensor) -> None:
        """Adds texts of one token each, ``tokens [texts]``."""

        def see(
            layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            for tensor, side in zip((key, value), self.moments(layer, query, key, value).sides, strict=True):
                side.add_first(tensor[:, :, 0].flatten(1).unflatten(1, (len(side.total), -1)))
            return key, value

        with torch.inference_mode(), tapped(self.model, see):
            for some in tokens.split(TEXTS_AT_ONCE):
                self.model(input_ids=some[:, None].to(self.model.device), use_cache=False)


def said_by_itself(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The sum over tokens of ``-log p(x)`` for an ``x`` drawn from ``p`` itself; ``logits [tokens, vocabulary]``."""
    log_p = logits.float().log_softmax(-1)
    drawn = torch.multinomial(log_p.detach().exp().cpu(), 1, generator=generator).to(log_p.device)
    return -log_p.gather(-1, drawn).sum()


def _rows(heads: torch.Tensor, groups: int) -> torch.Tensor:
    """``[1, kv_heads, tokens, dim]`` to ``[tokens, groups, width]``."""
    return heads[0].transpose(0, 1).flatten(1).unflatten(1, (groups, -1))


def _adding(side: SideMoments) -> Callable[[torch.Tensor], None]:
    def add(gradient: torch.Tensor) -> None:
        side.add_gradients(_rows(gradient.detach(), len(side.total))[1:])

    return add
