"""The usual centre of keys: what their mean is at a position of the text, constant over blocks of positions.

RoPE turns the mean key by the position, so number d of it is ``cos_d cos(f t) + sin_d sin(f t)`` with the frequency f
of the pair that d belongs to. Averaged over a block of ``BLOCK`` positions it depends on the block alone, slow pairs
keep their mean and fast ones lose it, and a query meets one more number per block than per token.
"""

import torch

BLOCK = 16  # positions


def features(frequencies: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """``[len(blocks), 2 F]`` float32: the means of ``cos(f t)`` over each block's positions, then those of the sines.

    ``frequencies [F]`` are in radians per token, float64; ``blocks`` are numbers of blocks.
    """
    places = blocks.double()[:, None] * BLOCK + torch.arange(BLOCK, dtype=torch.float64, device=blocks.device)
    angles = places[..., None] * frequencies.double().to(blocks.device)
    return torch.cat((angles.cos().mean(1), angles.sin().mean(1)), dim=-1).float()
