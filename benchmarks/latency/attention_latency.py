"""How long does a whole attention layer take to decode a token on a GPU? The paper's attention module latency.

``python -m benchmarks.latency.attention_latency [--shape llama-3.1-8b --ranks 256/256] [--contexts N ...] [--batch N]``
times the projections of one token per request, the rotation, the store into the cache, attention, and the output
projection. Dense arms project to query, key and value in one product, as vLLM does; latents take three, as they are
served, and the output projection of the fused value path. Biases of projections are left out. Defaults are the paper's;
``--smoke`` tries the harness on a CPU.
"""

from collections.abc import Callable

import torch

from benchmarks.kernels.roofline_model import FLOP, NUMBER, Work
from benchmarks.latency.attention_case import Arm, Case
from benchmarks.latency.harness import Experiment, run


class AttentionModule:
    """One step of a layer, with random weights, for the newest token of every request."""

    def __init__(self, arm: Arm, case: Case) -> None:
        self.arm, self.shape, hidden = arm, case.layer.shape, case.hidden_size
        self.hidden_states = case.random(case.batch.requests, hidden)
        self.weights = [case.random(hidden, sum(widths)) / hidden**0.5 for widths in arm.projections]
        width = self.shape.num_heads * arm.out_width
        self.out_weight = case.random(width, hidden) / width**0.5
        rotation = case.rotations[-1].to(case.dtype)
        self.cos, self.sin = rotation.chunk(2)

    def project(self) -> list[torch.Tensor]:
        """Query, then what is stored first and second, ``[requests, width]`` each."""
        parts = zip(self.weights, self.arm.projections, strict=True)
        return [part for weight, widths in parts for part in (self.hidden_states @ weight).split(widths, dim=-1)]

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        """``[requests, width]`` to ``[requests, heads, head_dim]``, rotated."""
        first, second = x.unflatten(-1, (-1, self.shape.head_dim)).chunk(2, dim=-1)
        return torch.cat((first * self.cos - second * self.sin, second * self.cos + first * self.sin), dim=-1)

    def __call__(self) -> torch.Tensor:
        query, first, second = self.project()
        self.arm.store(self.rotate(first).flatten(1) if self.arm.rotates_first else first, second)
        return self.arm.attend(self.rotate(query)).flatten(1) @ self.out_weight

    def work(self) -> Work:
        """Of the projections."""
        numbers = sum(weight.numel() for weight in (*self.weights, self.out_weight))
        return Work(numbers * NUMBER, numbers * NUMBER, FLOP * numbers * len(self.hidden_states))


def whole_module(arm: Arm, case: Case) -> tuple[Callable[[], torch.Tensor], Work]:
    module = AttentionModule(arm, case)
    return module, module.work()


EXPERIMENT = Experiment("attention_latency", "a whole attention layer, decoding one token per request", whole_module)

if __name__ == "__main__":
    run(EXPERIMENT)
