"""KIVI (Liu et al. 2024, arXiv 2402.02750): keys per channel, values per token, the newest tokens in full precision."""

from dataclasses import dataclass

import torch

from benchmarks.methods.coded.codes import Codes, per_channel, per_token, read_per_channel, read_per_token
from benchmarks.methods.harness.interface import Layer, Method, Store, Tokens, expect


@dataclass(frozen=True, kw_only=True)
class KIVI(Method):
    """As published: keys are quantized ``residual_length`` tokens at a time, so between 0 and ``residual_length - 1``
    of them are in full precision; of values always the newest ``residual_length``. Nothing is quantized twice.

    A group of keys is ``group_size`` tokens of one channel, of values ``group_size`` numbers of one token.
    """

    name = "kivi"

    k_bits: int = 2
    v_bits: int = 2
    group_size: int = 32
    residual_length: int = 128

    def __post_init__(self) -> None:
        whole = self.residual_length > 0 and self.residual_length % self.group_size == 0
        expect(whole, f"residual_length is {self.residual_length}, expected a multiple of group_size {self.group_size}")

    def store(self, layer: Layer) -> Store:
        return KIVIStore(self, layer)


class KIVIStore(Store):
    """Codes of old tokens and a full-precision tail of new ones."""

    def __init__(self, method: KIVI, layer: Layer) -> None:
        width = layer.num_kv_heads * layer.head_dim
        expect(width % method.group_size == 0, f"values of {width} numbers are no groups of {method.group_size}")
        self.method, self.kv_heads = method, layer.num_kv_heads
        self.key_codes: Codes | None = None
        self.value_codes: Codes | None = None
        self.key_tail, self.value_tail = layer.empty(), layer.empty()

    def append(self, tokens: Tokens) -> None:
        self.key_tail = torch.cat([self.key_tail.to(tokens.keys.device), tokens.keys.to(self.key_tail.dtype)], 1)
        self.value_tail = torch.cat(
            [self.value_tail.to(tokens.values.device), tokens.values.to(self.value_tail.dtype)], 1
        )
        length, residual = self.key_tail.shape[1], self.method.residual_length
        self._quantize_keys(length - length % residual)
        self._quantize_values(max(0, self.value_tail.shape[1] - residual))

    def _quantize_keys(self, count: int) -> None:
        if count:
            new = per_channel(self.key_tail[:, :count], self.method.k_bits, self.method.group_size)
            self.key_codes = new if self.key_codes is None else self.key_codes.followed_by(new, 2)
            self.key_tail = self.key_tail[:, count:].clone()

    def _quantize_values(self, count: int) -> None:
        if count:
            new = per_token(self.value_tail[:, :count], self.method.v_bits, self.method.group_size)
            self.value_codes = new if self.value_codes is None else self.value_codes.followed_by(new, 0)
            self.value_tail = self.value_tail[:, count:].clone()

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self.key_tail.float(), self.value_tail.float()
        if self.key_codes is not None:
            keys = torch.cat([read_per_channel(self.key_codes), keys], 1)
        if self.value_codes is not None:
            values = torch.cat([read_per_token(self.value_codes, self.kv_heads), values], 1)
        return keys, values
