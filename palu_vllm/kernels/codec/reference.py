"""What the kernels over codec slots must compute, in plain float32 torch: test oracle, and the path without a kernel.

The query is moved into the basis of the codes once, so that nothing is decoded to keys: with ``k = c + s D l`` a score
is ``s (l . D^T q) + q . c``, and with ``v = m + s D l`` the mean of values is ``D sum(p s l) + sum(p m)``.
"""

import torch

from palu_vllm.format.codec.coding import decode
from palu_vllm.format.codec.layer_codec import LayerCodec
from palu_vllm.format.codec.positions import BLOCK, features
from palu_vllm.kernels.codec.interface import CodecSettings
from palu_vllm.kernels.interface import PagedBatch
from palu_vllm.kernels.reference import visible


def store_codes(
    codec: LayerCodec,
    key: torch.Tensor,
    value: torch.Tensor,
    positions: torch.Tensor,
    cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> None:
    """Writes one slot of every group per entry of ``slot_mapping`` that is not negative."""
    tokens = torch.nonzero(slot_mapping >= 0).flatten()
    slots = slot_mapping[tokens]
    coded = encode_tokens(codec, key[tokens], value[tokens], positions[tokens])
    cache[slots // cache.shape[2], :, slots % cache.shape[2]] = coded


def encode_tokens(codec: LayerCodec, key: torch.Tensor, value: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The slots of tokens, uint8 ``[tokens, groups, slot.bytes]``."""
    centre = codec.key_centre(positions // BLOCK)
    payload_k, scale_k = codec.key.stored(key, centre)
    payload_v, scale_v = codec.value.stored(value, codec.value_mean)
    scales = torch.cat((scale_k, scale_v), dim=-1).view(torch.uint8)
    return torch.cat((scales, payload_k, payload_v), dim=-1)


def decode_tokens(codec: LayerCodec, slots: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What ``slots [tokens, groups, slot.bytes]`` at ``positions [tokens]`` are read as: keys ``[tokens, kv_heads,
    head_dim]`` after RoPE and values ``[tokens, kv_heads, value_dim]``, float32.
    """
    slot = codec.slot
    scales = slots[..., : slot.key_start].contiguous().view(torch.float16)
    keys = codec.key.read(
        slots[..., slot.key_start : slot.value_start], scales[..., :1], codec.key_centre(positions // BLOCK)
    )
    return keys, codec.value.read(slots[..., slot.value_start : slot.bytes], scales[..., 1:], codec.value_mean)


class CodecAttention:
    """``store`` and ``attend`` of ``interface`` in float32 torch, on any device."""

    def __init__(self, codec: LayerCodec, settings: CodecSettings) -> None:
        self.codec, self.settings = codec, settings
        self.queries_per_kv = settings.num_heads // codec.num_kv_heads

    def store(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        positions: torch.Tensor,
        cache: torch.Tensor,
        slot_mapping: torch.Tensor,
    ) -> None:
        store_codes(self.codec, key, value, positions, cache, slot_mapping)

    def captures(self, queries: int) -> bool:
        return False

    def measure(self, query: torch.Tensor, out: torch.Tensor) -> None:
        out.zero_()

    def attend(self, query: torch.Tensor, cache: torch.Tensor, batch: PagedBatch, out: torch.Tensor) -> None:
        starts = batch.query_start_loc.tolist()
        for request, length in enumerate(batch.seq_lens.tolist()):
            rows = slice(starts[request], starts[request + 1])
            if rows.stop > rows.start:
                out[rows] = self._request(query[rows], cache, batch.block_table[request], length).to(out.dtype)

    def _request(self, query: torch.Tensor, cache: torch.Tensor, blocks: torch.Tensor, length: int) -> torch.Tensor:
        """Attention of one request's newest tokens: ``[queries, num_heads, value_dim]`` float32."""
        window = self.settings.sliding_window
        first = 0 if window is None else max(0, length - len(query) - window + 1)
        positions = torch.arange(first, length, device=query.device)
        slots = cache[blocks.long()[positions // cache.shape[2]], :, positions % cache.shape[2]]
        mask = visible(torch.arange(length - len(query), length, device=query.device), positions, window)
        return self.attend_slots(query, slots, positions, mask)

    def attend_slots(
        self, query: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Attention of ``query [queries, num_heads, head_dim]`` over ``slots [tokens, groups, slot.bytes]`` at
        ``positions [tokens]``; ``mask [queries, tokens]`` says who sees whom. ``[queries, num_heads, value_dim]``.
        """
        slot = self.codec.slot
        scales = slots[..., : slot.key_start].contiguous().view(torch.float16).float()
        scale_k, scale_v = scales.unbind(-1)  # [tokens, groups]
        levels_k = decode(slots[..., slot.key_start : slot.value_start], slot.key)
        levels_v = decode(slots[..., slot.value_start : slot.bytes], slot.value)
        scores = self._scores(query.float(), levels_k, scale_k, positions)
        probabilities = self._probabilities(scores, mask)
        return self._values(probabilities, levels_v, scale_v)

    def _scores(
        self, query: torch.Tensor, levels: torch.Tensor, scale: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """``[queries, groups, heads of a group, tokens]``, scaled and capped."""
        codec, groups = self.codec, self.codec.num_groups
        heads = query.unflatten(1, (codec.num_kv_heads, -1))  # [queries, kv_heads, queries_per_kv, head_dim]
        decoder = codec.key.decoder.unflatten(1, (codec.num_kv_heads // groups, -1))
        turned = torch.einsum("qghjd,ghdr->qghjr", heads.unflatten(1, (groups, -1)), decoder).flatten(2, 3)
        products = torch.einsum("qgnr,tgr->qgnt", turned, levels) * scale.abs().T[:, None]
        usual = self._usual(heads, positions).unflatten(1, (groups, -1)).flatten(2, 3)
        sink = torch.einsum("qhjd,hd->qhj", heads, codec.key.sink).unflatten(1, (groups, -1)).flatten(2, 3)
        centre = torch.where(_negative(scale).T[:, None], sink[..., None], usual)
        scores = self.settings.scale * (products + centre)
        cap = self.settings.soft_cap
        return cap * torch.tanh(scores / cap) if cap else scores

    def _usual(self, heads: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """``q . c`` with the usual centres, ``[queries, kv_heads, queries_per_kv, tokens]``."""
        codec = self.codec
        blocks, of_token = torch.unique_consecutive(positions // BLOCK, return_inverse=True)
        cos, sin = features(codec.frequencies, blocks).chunk(2, dim=-1)
        folded = heads.new_zeros((2, *heads.shape[:-1], cos.shape[-1]))
        folded[0].index_add_(-1, codec.frequency_of, heads * codec.centre_cos[:, None])
        folded[1].index_add_(-1, codec.frequency_of, heads * codec.centre_sin[:, None])
        return (folded[0] @ cos.T + folded[1] @ sin.T)[..., of_token]

    def _probabilities(self, scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        scores = scores.masked_fill(~mask[:, None, None], float("-inf"))
        sinks = self.settings.sinks
        if sinks is None:
            return scores.softmax(dim=-1)
        extra = sinks.float().view(1, *scores.shape[1:3], 1).expand(*scores.shape[:3], 1)
        return torch.cat((scores, extra), dim=-1).softmax(dim=-1)[..., :-1]

    def _values(self, probabilities: torch.Tensor, levels: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """``[queries, num_heads, value_dim]``."""
        codec = self.codec
        weights = (probabilities * scale.abs().T[:, None]).masked_fill(probabilities == 0, 0.0)  # 0 * nan is 0 here
        means = torch.einsum("qgnt,tgr->qgnr", weights, levels)
        decoder = codec.value.decoder.unflatten(1, (codec.num_kv_heads // codec.num_groups, -1))
        means = means.unflatten(2, (decoder.shape[1], -1))  # [queries, groups, heads, queries_per_kv, rank]
        out = torch.einsum("qghjr,ghdr->qghjd", means, decoder).flatten(1, 2)
        first = (probabilities * _negative(scale).T[:, None]).sum(-1).unflatten(2, (decoder.shape[1], -1))
        usual = probabilities.sum(-1).unflatten(2, (decoder.shape[1], -1)) - first
        centres = usual.flatten(1, 2)[..., None] * codec.value_mean[:, None]
        centres = centres + first.flatten(1, 2)[..., None] * codec.value.sink[:, None]
        return (out + centres).flatten(1, 2)


def _negative(scale: torch.Tensor) -> torch.Tensor:
    """Whether a scale belongs to the sink's centre, -0 included."""
    return torch.signbit(scale)
