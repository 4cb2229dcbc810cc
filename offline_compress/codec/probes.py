"""What coding each layer alone costs, measured on one sample, over what its moments predict.

Moments take errors of tokens as independent. In the first layers they are not: there a value depends on little but its
token, so all copies of a token have one error, whose sum costs many times what the moments say.
"""

import time
from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

from offline_compress.codec.allocation import Allocation
from offline_compress.codec.build import SolvedLayer, build
from offline_compress.codec.judge import answers, coded_answers, divergence
from offline_compress.run.progress import OnEvent

LEAST = 0.5  # of a ratio: less is chance


def loss_ratios(
    model: PreTrainedModel,
    sample: torch.Tensor,
    solved: Mapping[int, SolvedLayer],
    probe: Allocation,
    on_event: OnEvent,
) -> dict[int, float]:
    """By layer, with the slots of ``probe`` and ``sample [seqlen]``, from position 0 on."""
    dense, ratios, started = answers(model, sample), dict[int, float](), time.monotonic()
    for (number, layer), slot, expected in zip(solved.items(), probe.slots, probe.losses, strict=True):
        codec = build(layer, slot).to(model.device)
        found = divergence(dense, coded_answers(model, sample, {number: codec}))
        ratios[number] = max(LEAST, found / max(expected, 1e-30))
        left = (time.monotonic() - started) / len(ratios) * (len(solved) - len(ratios))
        on_event({"event": "probe", "number": len(ratios) - 1, "of": len(solved), "seconds_left": round(left)})
    return ratios
