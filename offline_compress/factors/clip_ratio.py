"""The clip ratio of quantized latents is searched on calibration data.

Codes that cover the whole range of a row spend steps on its few largest numbers. Covering less (``LatentFormat``)
makes those wrong and all others finer; for 2 bits and numbers that are spread normally the best is about half the range
(Max, 1960; Palu's reference takes the ratio as ``--lt_clip_ratio``).
"""

from dataclasses import dataclass, replace

import torch

from palu_vllm.format.latent_format import LatentFormat
from palu_vllm.format.packing import rounded

CLIP_RATIOS = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)
MOST_BITS = 4  # with more bits the range is not worth clipping
SEARCHED_TOKENS = 128


def best_clip_ratio(latents: torch.Tensor, up: torch.Tensor | None, form: LatentFormat) -> float:
    """The ratio that brings what attention sees nearest to what it should.

    ``latents [tokens, groups, rank]`` are those that ``form`` packs, rotated if they will be; ``up [groups, rank,
    full]`` rebuilds keys or values from them, None where they are those themselves. The measure is the squared error of
    what is rebuilt, over ``SEARCHED_TOKENS`` tokens spread evenly.
    """
    if not any(tier.bits <= MOST_BITS for tier in form.tiers):
        return 1.0
    some = latents[:: -(-len(latents) // SEARCHED_TOKENS)]

    def error(ratio: float) -> float:
        lost = rounded(some, replace(form, clip=ratio)) - some
        return (lost if up is None else torch.einsum("tgr,grf->tgf", lost, up)).square().sum().item()

    return min(CLIP_RATIOS, key=error)


@dataclass(frozen=True)
class ClipSearch:
    """The search for a part of a layer: its bytes, and ``inputs [tokens, hidden]``, None to leave it as it is."""

    form: LatentFormat
    inputs: torch.Tensor | None

    def __call__(self, down: torch.Tensor, up: torch.Tensor | None) -> float:
        """The ratio for ``down [groups * rank, hidden]`` and ``up [groups, rank, full]``, of any float dtype."""
        if self.inputs is None:
            return self.form.clip
        latents = (self.inputs @ down.to(self.inputs).T).unflatten(-1, (-1, self.form.rank))
        return best_clip_ratio(latents, None if up is None else up.to(self.inputs), self.form)
