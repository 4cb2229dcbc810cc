"""StreamingLLM (Xiao et al. 2023, arXiv 2309.17453): the first tokens and the newest."""

from dataclasses import dataclass

import torch

from benchmarks.methods.harness.interface import Layer, Tokens
from benchmarks.methods.kept.pruning import Pruning


@dataclass(frozen=True, kw_only=True)
class StreamingLLM(Pruning):
    """As QPruningKV runs it: the first ``start_size`` tokens and the newest that fit, at the end of the prompt only.
    Tokens keep their positions.
    """

    name = "streaming_llm"

    start_size: int = 4

    @property
    def window(self) -> int:
        return self.max_capacity_prompts - self.start_size

    def scores(self, tokens: Tokens, layer: Layer) -> torch.Tensor:
        kv_heads, length, _ = tokens.keys.shape
        return -torch.arange(length - self.window, device=tokens.keys.device).expand(kv_heads, -1).float()
