"""What an error of keys or values costs, to first order, as a quadratic form per KV head or group of heads.

The cost is that of ``calibration/probe.py``: the squared change of what attention adds to the residual stream over the
squared length of the stream. Query token m reads token t at distance ``d = m - t`` with weight ``p_mt``; errors of
different tokens count as uncorrelated, and as independent of who reads them.

**Keys.** An error ``e_t`` changes the score by ``q_m^T R_d^T e_t / sqrt(D)`` (``R_d`` turns by d positions) and the
output by ``p_mt`` times that times ``O (v_t - z_m)``. So ``e`` costs ``e^T A e`` with

    A_h = sum_j mean_m sum_t w_mt R_d q_m q_m^T R_d^T / D,    w_mt = p_mt^2 |O_j (v_t - z_m)|^2 / |h_m|^2

over the query heads j of KV head h. Queries and distances are averaged apart: ``A_h = sum_j E_d[R_d C_j R_d^T]`` with
the weighted second moment ``C_j`` of queries and the distances as often as they are read. A pair of coordinates that
turns many times within them keeps its energy only, half of ``E |q_pair|^2`` for each coordinate, uncorrelated with any
other pair; that limit, for all pairs, is the usual query weighting. Slow pairs hardly turn and keep their direction.

Keys that pass a norm after their projection multiply an error by ``g / rms(k_t)``: ``A_h`` is multiplied, element by
element, by the second moment of that.

**Values.** Errors of a token reach the output through every head that reads it:

    A_hh' = sum_ij r_ij O_i^T O_j,    r_ij = mean_m sum_t p^i_mt p^j_mt / |h_m|^2

over query heads i of h and j of h': how much two heads read the same tokens.
"""

from collections.abc import Iterable

import torch

from offline_compress.calibration.probe import AttentionProbe


def turned_moment(moment: torch.Tensor, reads: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """``sum_d reads_d R_d C R_d^T [D, D]`` for ``C [D, D]`` and ``reads [distances]``, float64, pairs apart by D / 2.

    ``rotary`` are cosines and sines ``[distances, D]`` of positions 0, 1, ...
    """
    cos, sin = (table.double().chunk(2, dim=-1)[0] for table in rotary)  # [distances, D / 2]
    weighted_cos, weighted_sin = cos * reads[:, None], sin * reads[:, None]
    cc, cs, ss = weighted_cos.T @ cos, weighted_cos.T @ sin, weighted_sin.T @ sin
    (p, q), (_, s) = (rows.chunk(2, dim=1) for rows in moment.chunk(2))
    first = cc * p - cs * q - cs.T * q.T + ss * s
    mixed = cs * p + cc * q - ss * q.T - cs.T * s
    second = ss * p + cs.T * q + cs * q.T + cc * s
    return torch.cat([torch.cat([first, mixed], 1), torch.cat([mixed.T, second], 1)])


def read_energy(probe: AttentionProbe, kv_head: int, query: int) -> torch.Tensor:
    """``w [tokens, tokens]`` of one query head, divided by the number of tokens."""
    probabilities, values = probe.probabilities[kv_head, query], probe.values[kv_head]
    head = kv_head * probe.probabilities.shape[1] + query
    output = probe.output.unflatten(1, (len(probe.queries), -1))[:, head]  # [sketch, head_dim]
    added = values @ output.T
    mean = probabilities @ added
    distance = added.square().sum(-1) + mean.square().sum(-1)[:, None] - 2 * mean @ added.T
    return probabilities.square() * distance.clamp_(min=0) / (len(added) * probe.energy[:, None])


def distances_read(read: torch.Tensor) -> torch.Tensor:
    """Sums of the diagonals 0, -1, ... of ``read [tokens, tokens]``: how much is read at every distance."""
    tokens = len(read)
    latest_first = torch.nn.functional.pad(read.flip(1), (0, tokens)).contiguous()  # [tokens, 2 * tokens]
    # row m begins where its own token is
    return latest_first.as_strided((tokens, tokens), (2 * tokens - 1, 1), tokens - 1).sum(0)


def key_metric(probes: Iterable[AttentionProbe]) -> torch.Tensor:
    """``A_h`` for every KV head, float64 ``[num_kv_heads, head_dim, head_dim]``, mean over probes of equal length."""
    count = 0
    moments: torch.Tensor = 0
    reads: torch.Tensor = 0
    gains: torch.Tensor = 0
    for probe in probes:
        count, rotary, queries = count + 1, probe.rotary, probe.probabilities.shape[1]
        heads = [_read_queries(probe, head) for head in range(len(probe.queries))]
        moments += torch.stack([moment for moment, _ in heads])
        reads += torch.stack([distances for _, distances in heads])
        gain = torch.ones_like(probe.keys) if probe.key_gain is None else probe.key_gain
        gains += (gain.mT @ gain).double() / gain.shape[1]
    shares = reads / reads.sum(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    turned = [turned_moment(moment, share, rotary) for moment, share in zip(moments, shares, strict=True)]
    length = rotary[0][0, 0].item()  # 1, unless the model scales what it rotates (yarn)
    whole = torch.stack(turned).unflatten(0, (-1, queries)).sum(1) * (length**2 / (len(turned[0]) * count))
    return whole * gains / count


def _read_queries(probe: AttentionProbe, head: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Second moment of a head's queries by what they read, ``[head_dim, head_dim]``, and how much at every distance."""
    read = read_energy(probe, *divmod(head, probe.probabilities.shape[1])).double()
    queries = probe.queries[head].double()
    return (queries * read.sum(1, keepdim=True)).T @ queries, distances_read(read)


def shared_reading(probes: Iterable[AttentionProbe]) -> torch.Tensor:
    """``r [num_heads, num_heads]`` float64: how much the attention of query heads overlaps, mean over probes."""
    count, overlap = 0, 0
    for probe in probes:
        scale = (len(probe.energy) * probe.energy[:, None]).sqrt()
        rows = (probe.probabilities / scale).flatten(2).flatten(0, 1)
        count, overlap = count + 1, overlap + (rows @ rows.T).double()
    return overlap / count


def value_metric(overlap: torch.Tensor, output: torch.Tensor, num_kv_heads: int, num_groups: int) -> torch.Tensor:
    """``A [num_groups, group_size * head_dim, group_size * head_dim]`` float64 of every group.

    ``overlap`` is ``r``, ``output`` is ``O [hidden, num_heads * head_dim]`` of any float dtype.
    """
    queries, per_group = len(overlap) // num_kv_heads, num_kv_heads // num_groups
    columns = output.chunk(len(overlap), dim=1)

    def block(a: int, b: int) -> torch.Tensor:
        pairs = [(i, j) for i in range(a * queries, (a + 1) * queries) for j in range(b * queries, (b + 1) * queries)]
        return sum(overlap[i, j] * (columns[i].double().T @ columns[j].double()) for i, j in pairs)

    groups = []
    for first in range(0, num_kv_heads, per_group):
        heads = range(first, first + per_group)
        groups.append(torch.cat([torch.cat([block(a, b) for b in heads], 1) for a in heads]))
    return torch.stack(groups)
