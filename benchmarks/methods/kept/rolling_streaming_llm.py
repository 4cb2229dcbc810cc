"""StreamingLLM as published: sinks and a window that rolls on with every token (Xiao et al. 2023, arXiv 2309.17453)."""

from dataclasses import dataclass

import torch

from benchmarks.methods.harness.interface import Layer, Method, Store, Tokens, expect, part
from benchmarks.methods.harness.rotary import rotate, unrotate


@dataclass(frozen=True, kw_only=True)
class RollingStreamingLLM(Method):
    """Never more than ``start_size + recent_size`` tokens. With ``enable_pos_shift`` positions are those within the
    cache: the sinks stand right before the window, wherever it is.
    """

    name = "streaming_llm_rolling"

    start_size: int = 4
    recent_size: int = 508
    enable_pos_shift: bool = True

    def __post_init__(self) -> None:
        expect(self.start_size > 0 and self.recent_size > 0, "start_size and recent_size have to be positive")

    def store(self, layer: Layer) -> Store:
        return RollingStore(self, layer)


class RollingStore(Store):
    """The window is rotated as it came. Sinks are rotated when they are read, if positions shift."""

    def __init__(self, method: RollingStreamingLLM, layer: Layer) -> None:
        self.method, self.layer = method, layer
        self.sinks, self.sink_values = layer.empty(), layer.empty()
        self.window, self.window_values = layer.empty(), layer.empty()
        self.next_position = 0

    def append(self, tokens: Tokens) -> None:
        if not tokens.keys.shape[1]:
            return
        missing = self.method.start_size - self.sinks.shape[1]
        if missing > 0:
            self._take_sinks(part(tokens, slice(0, missing)))
        new = part(tokens, slice(max(0, missing), None))
        recent = self.method.recent_size
        self.window = torch.cat([self.window, new.keys.to(self.window)], 1)[:, -recent:].clone()
        self.window_values = torch.cat([self.window_values, new.values.to(self.window)], 1)[:, -recent:].clone()
        self.next_position = int(tokens.positions[0, -1]) + 1

    def _take_sinks(self, tokens: Tokens) -> None:
        keys = tokens.keys
        if self.method.enable_pos_shift:
            keys = unrotate(keys, tokens.positions[0], self.layer)
        self.sinks = torch.cat([self.sinks, keys.to(self.sinks)], 1)
        self.sink_values = torch.cat([self.sink_values, tokens.values.to(self.sinks)], 1)

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        sinks, window = self.sinks.float(), self.window.float()
        if self.method.enable_pos_shift:
            last = self.next_position - window.shape[1]  # that of the oldest token of the window
            positions = torch.arange(last - sinks.shape[1], last, device=sinks.device)
            sinks = rotate(sinks, positions, self.layer)
        return torch.cat([sinks, window], 1), torch.cat([self.sink_values, self.window_values], 1)
