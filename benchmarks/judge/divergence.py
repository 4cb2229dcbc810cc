"""How far a model is from the dense one on rows of text: per token, then summed up over kinds and positions."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch

POSITIONS = {"first_64": (0, 64), "to_512": (64, 512), "beyond": (512, None)}


@dataclass(frozen=True)
class PerToken:
    """One number for each scored token, ``[rows, context - 1]``."""

    kl: torch.Tensor  # of the dense model's distribution from the arm's, in nats
    same_top: torch.Tensor  # bool
    loss: torch.Tensor  # of the token that follows, in nats

    @classmethod
    def joined(cls, rows: list["PerToken"]) -> "PerToken":
        return cls(*(torch.stack([getattr(row, each.name) for row in rows]) for each in fields(cls)))

    def part(self, rows: Any, positions: slice) -> "PerToken":
        return PerToken(*(getattr(self, each.name)[rows, positions] for each in fields(self)))


@torch.inference_mode()
def log_probabilities(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Float32 ``[context - 1, vocabulary]`` of the tokens behind the first of ``ids [context]``."""
    return model(ids[None], use_cache=False).logits[0, :-1].float().log_softmax(-1)


class Reference:
    """The dense model's distributions on some rows, kept in float16."""

    def __init__(self, dense: torch.nn.Module, rows: torch.Tensor) -> None:
        self.rows = rows
        self.kept = [log_probabilities(dense, ids).half() for ids in rows]

    def per_token(self, model: torch.nn.Module) -> PerToken:
        return PerToken.joined(list(self._rows(model)))

    @torch.inference_mode()
    def _rows(self, model: torch.nn.Module) -> Iterator[PerToken]:
        for ids, kept in zip(self.rows, self.kept, strict=True):
            found, reference = log_probabilities(model, ids), kept.float()
            # float16 leaves probabilities that add up to almost one: what is missing would pass for divergence
            reference = reference - reference.logsumexp(-1, keepdim=True)
            kl = (reference.exp() * (reference - found)).sum(-1).clamp_min(0)
            loss = -found.gather(-1, ids[1:, None])[:, 0]
            yield PerToken(kl, found.argmax(-1) == reference.argmax(-1), loss)


def summary(found: PerToken) -> dict[str, float]:
    """Means and quantiles. The standard error of the perplexity takes tokens as independent."""
    kl, loss = found.kl.flatten().double(), found.loss.flatten().double()
    perplexity = math.exp(loss.mean().item())
    error = perplexity * (loss.std() / math.sqrt(len(loss))).item() if len(loss) > 1 else 0.0
    measured = {
        "kl": kl.mean().item(),
        "kl_99": kl.quantile(0.99).item(),
        "kl_999": kl.quantile(0.999).item(),
        "top1": found.same_top.double().mean().item(),
        "perplexity": perplexity,
        "perplexity_error": error,
    }
    return {name: float(f"{value:.5g}") for name, value in measured.items()}


def summaries(found: PerToken, kinds: tuple[str, ...]) -> dict[str, Any]:
    """Of all tokens, and ``by_kind`` of text and ``by_position`` in the row."""
    everything = slice(None)
    by_kind = {
        kind: summary(found.part([i for i, each in enumerate(kinds) if each == kind], everything))
        for kind in dict.fromkeys(kinds)
    }
    by_position = {
        name: summary(found.part(everything, slice(start, end)))
        for name, (start, end) in POSITIONS.items()
        if start < found.kl.shape[1]
    }
    return summary(found) | {"by_kind": by_kind, "by_position": by_position}
