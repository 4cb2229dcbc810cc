"""What a cache costs and saves: a prompt of held-out text is compressed, then the text goes on token by token.

Scored are tokens that are predicted after something was read from the cache, so the first one after the prompt is not.
"""

import math
import time
from collections.abc import Callable

import torch
from transformers import Cache, PreTrainedModel

from benchmarks.methods.harness.interface import Method
from benchmarks.methods.harness.prompts import Arm, Prompt, cache_arm, method_arm


class Judge:
    """Scores caches on rows of text against the dense model, whose distributions are kept.

    ``rows`` int64 ``[rows, prompt_tokens + continuation]``, at least two tokens of continuation. Raises ValueError.
    """

    def __init__(self, dense: PreTrainedModel, rows: torch.Tensor, prompt_tokens: int) -> None:
        if not 0 < prompt_tokens <= rows.shape[1] - 2:
            raise ValueError(f"{rows.shape[1]} tokens are no prompt of {prompt_tokens} and 2 tokens after it")
        self.rows, self.prompt_tokens = rows, prompt_tokens
        with torch.inference_mode():
            logits = [dense(row[None]).logits[0, prompt_tokens:-1] for row in rows]
        self.prompts = [Prompt(dense, row[:prompt_tokens], dense.dtype) for row in rows]
        self.reference = torch.stack(logits).float().log_softmax(-1)  # [rows, scored, vocabulary]

    def score(self, model: PreTrainedModel, make_cache: Callable[[], Cache]) -> dict[str, float]:
        """``score_arm`` of a model with its own attention; caches of ``make_cache`` have ``nbytes()``."""
        return self.score_arm(cache_arm(model, make_cache))

    def score_method(self, model: PreTrainedModel, method: Method, dtype: torch.dtype) -> dict[str, float]:
        """``score_arm`` of a method on the dense model; full-precision numbers are stored as ``dtype``."""
        return self.score_arm(method_arm(model, method, dtype))

    @torch.inference_mode()
    def score_arm(self, arm: Arm) -> dict[str, float]:
        """Perplexity, KL(dense || model) in nats per token, bytes per request at both ends, seconds per decoded token.

        Each row is a request of its own.
        """
        loss = divergence = at_prompt_end = after = seconds = 0.0
        with arm.attention():
            for row, prompt, reference in zip(self.rows, self.prompts, self.reference, strict=True):
                cache = arm.compress([prompt])
                at_prompt_end += cache.nbytes()
                started = time.perf_counter()
                found = self._decoded(arm.model, cache, row)
                seconds += time.perf_counter() - started
                after += cache.nbytes()
                loss -= found.gather(-1, row[self.prompt_tokens + 1 :, None]).sum().item()
                divergence += (reference.exp() * (reference - found)).sum().item()
        rows, scored, _ = self.reference.shape
        return {
            "perplexity": math.exp(loss / (rows * scored)),
            "kl": divergence / (rows * scored),
            "bytes_at_prompt_end": at_prompt_end / rows,
            "bytes_after": after / rows,
            "seconds_per_token": seconds / (rows * scored),
        }

    def _decoded(self, model: PreTrainedModel, cache: Cache, row: torch.Tensor) -> torch.Tensor:
        """Log-probabilities ``[scored, vocabulary]``, the text fed one token at a time as decoding does."""
        steps = row[self.prompt_tokens : -1].split(1)
        logits = [model(step[None], past_key_values=cache).logits[0, -1] for step in steps]
        return torch.stack(logits).float().log_softmax(-1)
