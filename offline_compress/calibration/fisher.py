"""How much the loss depends on each projection: empirical Fisher information, whole model, float32.

Paper: ``F = sqrt(mean_n (dL_n / dW)^2)`` per element, averaged over the rows of a group.
"""

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import cross_entropy


def next_token_loss(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of token ``t + 1`` under ``logits[t]``; ``[tokens, vocabulary]`` and ``[tokens]``."""
    return cross_entropy(logits[:-1].float(), tokens[1:])


def fisher_information(
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    weights: Sequence[torch.nn.Parameter],
    samples: torch.Tensor,
    on_sample: Callable[[int], None],
) -> list[torch.Tensor]:
    """``sqrt(mean over samples of gradient^2)`` of every weight, float32 of the weight's shape.

    ``samples`` is ``[samples, seqlen]`` token ids, ``logits_of`` maps one row to ``[seqlen, vocabulary]``. Raises
    ValueError for a gradient that is not finite.
    """
    squares = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
    for number, tokens in enumerate(samples):
        loss = next_token_loss(logits_of(tokens), tokens)
        for total, gradient in zip(squares, torch.autograd.grad(loss, weights), strict=True):
            total.addcmul_(gradient, gradient)
        on_sample(number)
    if not all(torch.isfinite(total).all() for total in squares):
        raise ValueError("a gradient of the loss is not finite")
    return [total.div_(len(samples)).sqrt_() for total in squares]


def group_importance(information: torch.Tensor, num_groups: int) -> list[float]:
    """Mean Fisher information of each group of rows of one projection."""
    return [rows.double().mean().item() for rows in information.chunk(num_groups)]
