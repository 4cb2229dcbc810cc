"""PyramidKV (Cai et al. 2024, arXiv 2406.02069): SnapKV with more tokens in low layers and fewer in high ones."""

from dataclasses import dataclass

from benchmarks.methods.harness.interface import Layer, expect
from benchmarks.methods.kept.snapkv import SnapKV


@dataclass(frozen=True, kw_only=True)
class PyramidKV(SnapKV):
    """``max_capacity_prompts`` is the mean of all layers. Besides the window, the last layer keeps one in ``beta`` of
    the mean where the prompt is long enough, the first the more; between them it falls evenly.
    """

    name = "pyramidkv"

    beta: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self.beta >= 1, f"beta is {self.beta}, expected at least 1")

    def capacity(self, tokens: int, layer: Layer) -> int:
        """Rounded such that the layers together keep exactly ``max_capacity_prompts`` each on average."""
        mean = self.max_capacity_prompts - self.window_size
        lowest = mean // self.beta
        highest = 2 * mean - lowest
        if highest > tokens - self.window_size:
            highest = tokens - self.window_size
            lowest = 2 * mean - highest
        last = max(1, layer.num_layers - 1)
        mirrored = min(layer.index, last - layer.index)  # a layer and its mirror image keep 2 * mean together
        step = (highest - lowest) * mirrored // last
        old = highest - step if layer.index <= last - layer.index else lowest + step
        return self.window_size + (mean if 2 * layer.index == layer.num_layers - 1 else old)
