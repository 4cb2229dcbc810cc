"""QPruningKV (Zhang et al. 2024, arXiv 2412.12706): keep more tokens at lower precision. Pruning times quantizing."""

from dataclasses import dataclass

import torch

from benchmarks.methods.coded.codes import BITS, Codes, per_channel, per_token, read_per_channel, read_per_token
from benchmarks.methods.coded.outliers import Outliers
from benchmarks.methods.harness.dense import DenseStore
from benchmarks.methods.harness.interface import Layer, Method, Store, Tokens, expect
from benchmarks.methods.kept.h2o import H2O
from benchmarks.methods.kept.pruning import PrunedStore, Pruning
from benchmarks.methods.kept.pyramidkv import PyramidKV
from benchmarks.methods.kept.snapkv import SnapKV
from benchmarks.methods.kept.streaming_llm import StreamingLLM

PRUNING = {"PyramidKV": PyramidKV, "SnapKV": SnapKV, "H2O": H2O, "StreamingLLM": StreamingLLM, "LayerQuant": SnapKV}
QUANTIZERS = ("kivi", "kvquant", "layerquant")


@dataclass(frozen=True, kw_only=True)
class QPruningKV(Method):
    """The kept prompt is quantized at once; tokens after it stay in full precision, as published.

    ``key_axis`` 0 groups keys along tokens, per channel; 1 within a token, as values are. ``kvquant`` keeps numbers
    above ``outlier_threshold`` aside. ``LayerQuant`` is SnapKV with ``layerquant``: layers from ``quant_begin_layers``
    to before ``quant_end_layers`` take ``quant_layers_bits``, the others ``nbits``, and each layer
    ``max_capacity_prompts * 16 / bits`` tokens, so that all take the bytes of ``max_capacity_prompts`` in 16 bits.
    """

    name = "qpruningkv"

    method: str = "SnapKV"
    max_capacity_prompts: int = 512
    nbits: int = 4
    quant_method: str = "kivi"
    key_axis: int = 0
    group_size: int = 64
    outlier_threshold: float = 6.0
    quant_layers_bits: int = 8
    quant_begin_layers: int = 0
    quant_end_layers: int = 4

    def __post_init__(self) -> None:
        expect(self.method in PRUNING, f"method is {self.method!r}, expected one of {list(PRUNING)}")
        known = self.quant_method in QUANTIZERS
        expect(known, f"quant_method is {self.quant_method!r}, expected one of {list(QUANTIZERS)}")
        together = (self.method == "LayerQuant") == (self.quant_method == "layerquant")
        expect(together, "method LayerQuant and quant_method layerquant need each other")
        expect(self.key_axis in (0, 1), f"key_axis is {self.key_axis}, expected 0 or 1")
        expect({self.nbits, self.quant_layers_bits} <= set(BITS), f"expected bits among {BITS}")
        self.pruning(self.nbits)

    def bits(self, layer: int) -> int:
        """Bits of a layer."""
        special = self.quant_begin_layers <= layer < self.quant_end_layers
        return self.quant_layers_bits if self.quant_method == "layerquant" and special else self.nbits

    def pruning(self, bits: int) -> Pruning:
        """What prunes a layer of so many bits."""
        more = 16 // bits if self.quant_method == "layerquant" else 1
        return PRUNING[self.method](max_capacity_prompts=self.max_capacity_prompts * more)

    def store(self, layer: Layer) -> Store:
        width = layer.num_kv_heads * layer.head_dim
        expect(width % self.group_size == 0, f"values of {width} numbers are no groups of {self.group_size}")
        bits = self.bits(layer.index)
        return PrunedStore(self.pruning(bits), layer, QuantizedPrompt(self, layer, bits))


class QuantizedPrompt(Store):
    """Codes of the prompt, but for keys that fill no group; all else in full precision."""

    def __init__(self, method: QPruningKV, layer: Layer, bits: int) -> None:
        self.method, self.layer, self.bits = method, layer, bits
        self.codes: tuple[Codes, Codes] | None = None
        self.outliers: tuple[Outliers, Outliers] | None = None
        self.tail = DenseStore(layer)

    def append(self, tokens: Tokens) -> None:
        if self.codes is not None:
            self.tail.append(tokens)
            return
        length = tokens.keys.shape[1]
        whole = length if self.method.key_axis else length - length % self.method.group_size
        keys, values = tokens.keys.float(), tokens.values.float()
        self.tail.append(tokens._replace(keys=keys[:, whole:], values=values[:, :0]))
        keys = keys[:, :whole]
        if self.method.quant_method == "kvquant":
            keys, values = self._without_outliers(keys, values)
        group = per_token if self.method.key_axis else per_channel
        size = self.method.group_size
        self.codes = group(keys, self.bits, size), per_token(values, self.bits, size)

    def _without_outliers(self, *parts: torch.Tensor) -> list[torch.Tensor]:
        found = [Outliers.beyond(x.flatten(), self.method.outlier_threshold, self.layer.dtype) for x in parts]
        self.outliers = found[0], found[1]
        zero = parts[0].new_zeros(1)
        return [each.replaced(x.flatten(), zero).view_as(x) for each, x in zip(found, parts, strict=True)]

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self.codes is None:
            return self.tail.read()
        heads = self.layer.num_kv_heads
        keys = read_per_token(self.codes[0], heads) if self.method.key_axis else read_per_channel(self.codes[0])
        parts = [keys, read_per_token(self.codes[1], heads)]
        if self.outliers is not None:
            parts = [each.restored(x.flatten()).view_as(x) for each, x in zip(self.outliers, parts, strict=True)]
        keys, values = (torch.cat([x, y.float()], 1) for x, y in zip(parts, self.tail.read(), strict=True))
        return keys, values
