"""KVQuant (Hooper et al. 2024, arXiv 2401.18079): keys per channel before rotation with ranges known beforehand,
values per token, non-uniform levels, a few outliers per token, the first tokens as they are.
"""

from dataclasses import dataclass, field, replace
from typing import Self

import torch

from benchmarks.methods.coded.kvquant_store import KVQuantStore, Ranges, flat, value_range
from benchmarks.methods.harness.attention import layers_of
from benchmarks.methods.harness.calibration import gradients, keys_and_values
from benchmarks.methods.harness.interface import Layer, Method, Store, expect
from benchmarks.methods.harness.rotary import unrotate

ABITS = (4, 3, 2)
SAMPLE = 2**18  # numbers at most, evenly spaced, that levels are fitted to


@dataclass(frozen=True)
class Evidence:
    """Keys before rotation and values of calibration text in a layer, and how much an error in each number costs."""

    layer: Layer
    keys: torch.Tensor  # [rows, tokens, num_kv_heads * head_dim]
    values: torch.Tensor  # [rows, tokens, num_kv_heads * head_dim]
    key_weights: torch.Tensor  # as keys
    value_weights: torch.Tensor  # as values


@dataclass(frozen=True, kw_only=True)
class KVQuant(Method):
    """``1 - sparsity_threshold`` of each token's numbers are outliers, the same count for every token as with the
    published ``cap_outliers``. ``nuq`` takes levels from 1-d k-means on calibration text, in which a number counts as
    its Fisher information, the square of the loss's gradient, if ``fisher``; without, they are evenly spaced.
    """

    name = "kvquant"

    abits: int = 4
    nuq: bool = True
    fisher: bool = True
    include_sparse: bool = True
    sparsity_threshold: float = 0.99
    first_few_fp16: int = 1
    ranges: tuple[Ranges, ...] = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        expect(self.abits in ABITS, f"abits is {self.abits}, expected one of {ABITS}")
        expect(
            0.5 < self.sparsity_threshold <= 1, f"sparsity_threshold is {self.sparsity_threshold}, expected (0.5, 1]"
        )
        expect(self.first_few_fp16 >= 0, "first_few_fp16 is negative")

    def outliers(self, width: int) -> int:
        """How many numbers of a token of ``width`` are kept on each side of the range."""
        return round((1 - self.sparsity_threshold) * width / 2) if self.include_sparse else 0

    @property
    def lesson(self) -> bool:
        return self.fisher and self.nuq

    def studied(self, model: torch.nn.Module, rows: torch.Tensor) -> list[Evidence]:
        layers, cached = layers_of(model, torch.float32), keys_and_values(model, rows)
        positions, found = torch.arange(rows.shape[1], device=rows.device), []
        slopes = gradients(model, rows) if self.lesson else [tuple(map(torch.ones_like, pair)) for pair in cached]
        for layer, pairs in zip(layers, zip(cached, slopes, strict=True), strict=True):
            (keys, values), (key_slopes, value_slopes) = pairs
            key_slopes = unrotate(key_slopes, positions, layer) if self.lesson else key_slopes
            sides = unrotate(keys, positions, layer), values, key_slopes.square(), value_slopes.square()
            found.append(Evidence(layer, *map(flat, sides)))
        return found

    def taught(self, found: list[Evidence]) -> Self:
        return replace(self, ranges=tuple(self._ranges(each) for each in found))

    def _ranges(self, found: Evidence) -> Ranges:
        """Without the tokens that are kept as they are."""
        sides = found.keys, found.values, found.key_weights, found.value_weights
        keys, values, *weights = (side[:, self.first_few_fp16 :].flatten(0, 1) for side in sides)
        tail = (1 - self.sparsity_threshold) / 2 if self.include_sparse else 0.0
        last = len(keys) - 1
        low, high = (keys.kthvalue(1 + round(share * last), dim=0).values for share in (tail, 1 - tail))
        middle, half = (high + low) / 2, ((high - low) / 2).clamp(min=1e-6)
        _, value_middle, value_half = value_range(values, self.outliers(values.shape[1]), found.layer.dtype)
        key_levels = self._levels((keys - middle) / half, weights[0])
        return Ranges(middle, half, key_levels, self._levels((values - value_middle) / value_half, weights[1]))

    def _levels(self, normal: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Of numbers that the range maps to ``[-1, 1]``; those beyond it do not count."""
        even = torch.linspace(-1, 1, 2**self.abits, device=normal.device)
        if not self.nuq:
            return even
        inside = normal.abs() <= 1 + 1e-3  # its ends are float16
        numbers, weights = normal[inside].clamp(-1, 1), weights[inside]
        spacing = -(-len(numbers) // SAMPLE)
        return k_means(numbers[::spacing], even, weights[::spacing])

    def store(self, layer: Layer) -> Store:
        expect(bool(self.ranges), "kvquant has to be calibrated first")
        count = self.outliers(layer.num_kv_heads * layer.head_dim)
        return KVQuantStore(self.ranges[layer.index], layer, count, self.first_few_fp16)


def k_means(x: torch.Tensor, levels: torch.Tensor, weights: torch.Tensor, rounds: int = 50) -> torch.Tensor:
    """Lloyd's algorithm on numbers ``x [count]``, each of its weight ``[count]``, from rising ``levels``; a level whose
    numbers weigh nothing stays.
    """
    order = x.argsort()
    x, weights = x[order].double(), weights[order].double()
    zero = x.new_zeros(1)
    weight_before, sum_before = (torch.cat([zero, each.cumsum(0)]) for each in (weights, weights * x))
    for _ in range(rounds):
        ends = torch.searchsorted(x, (levels[1:] + levels[:-1]).double() / 2)
        ends = torch.cat([ends.new_zeros(1), ends, ends.new_tensor([len(x)])])
        weight, total = weight_before[ends].diff(), sum_before[ends].diff()
        means = (total / weight.clamp(min=1e-300)).to(levels)
        levels = torch.where(weight > 0, means, levels).sort().values
    return levels
