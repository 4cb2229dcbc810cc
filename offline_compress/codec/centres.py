"""The usual centre of keys: which frequency each number of a head turns with, and how much of its mean does.

Models place the pairs of RoPE differently and some leave numbers unturned, so the places are found from the keys: of
all sets of frequencies and both placements, the one that explains most.
"""

from dataclasses import dataclass

import torch

from offline_compress.codec.moments import LayerMoments

STILL = torch.zeros(1, dtype=torch.float64)  # the frequency of numbers that do not turn
RIDGE = 1e-9


@dataclass(frozen=True)
class KeyCentre:
    """``cos``, ``sin [kv_heads, head_dim]`` float64, ``frequency_of [head_dim]`` and ``frequencies [F]``, as in
    ``LayerCodec``; ``covariance [groups, width, width]`` is that of keys around it.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    frequency_of: torch.Tensor
    frequencies: torch.Tensor
    covariance: torch.Tensor


def key_centre(moments: LayerMoments, frequencies: dict[str, torch.Tensor]) -> KeyCentre:
    """The best centre of a layer's keys. ``frequencies`` are the sets that its moments were made with."""
    fits = [
        _fit(moments, name, each, interleaved) for name, each in frequencies.items() for interleaved in (False, True)
    ]
    return min([*fits, _still(moments)], key=lambda fit: float(fit.covariance.diagonal(dim1=1, dim2=2).sum()))


def _fit(moments: LayerMoments, name: str, frequencies: torch.Tensor, interleaved: bool) -> KeyCentre:
    """Least squares of every number on cosine and sine of its own frequency, still numbers on a constant."""
    turned, dim = 2 * len(frequencies), moments.head_dim
    places = torch.arange(dim)
    pair = places // 2 if interleaved else places % len(frequencies)
    frequency_of = torch.where(places < turned, pair, len(frequencies))
    count = len(frequencies) + (turned < dim)
    along, features = _with_still(moments, name, count > len(frequencies))
    groups, width, _ = along.shape
    matrix = torch.zeros_like(along)
    of_number = frequency_of.repeat(width // dim)
    for number in range(width):
        at = torch.tensor([int(of_number[number]), int(of_number[number]) + count])
        inner = features[at][:, at] + RIDGE * moments.tokens * torch.eye(2, dtype=torch.float64)
        matrix[:, number, at] = torch.linalg.solve(inner, along[:, number, at].T).T
    cos, sin = (matrix.gather(2, (of_number + shift).expand(groups, -1)[..., None])[..., 0] for shift in (0, count))
    crossed = matrix @ along.mT
    covariance = moments.sides.key.second - crossed - crossed.mT + matrix @ features @ matrix.mT
    heads = (moments.kv_heads, dim)
    sets = torch.cat((frequencies, STILL)) if count > len(frequencies) else frequencies
    return KeyCentre(cos.reshape(heads), sin.reshape(heads), frequency_of, sets, covariance / moments.tokens)


def _with_still(moments: LayerMoments, name: str, needed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums along features, with those of the frequency 0 (cosine 1, sine 0) behind the others of each kind."""
    along, features = moments.along[name], moments.features[name]
    if not needed:
        return along, features
    count = len(features) // 2
    wide = torch.zeros(2 * count + 2, 2 * count + 2, dtype=torch.float64)
    kept = torch.tensor([*range(count), *range(count + 1, 2 * count + 1)])
    wide[kept[:, None], kept] = features
    wide[count, kept] = wide[kept, count] = moments.feature_totals[name]
    wide[count, count] = moments.tokens
    sums = torch.zeros(*along.shape[:2], 2 * count + 2, dtype=torch.float64)
    sums[..., kept] = along
    sums[..., count] = moments.sides.key.total
    return sums, wide


def _still(moments: LayerMoments) -> KeyCentre:
    """The mean at every position, for models that turn nothing."""
    mean = moments.sides.key.total / moments.tokens
    covariance = moments.sides.key.second / moments.tokens - mean[..., :, None] * mean[..., None, :]
    cos = mean.reshape(moments.kv_heads, moments.head_dim)
    return KeyCentre(cos, torch.zeros_like(cos), torch.zeros(moments.head_dim, dtype=torch.int64), STILL, covariance)
