"""How long does decode attention over latents take on a GPU, beside dense kernels? The paper's kernel latency.

``python -m benchmarks.latency.kernel_latency [--shape llama-3.1-8b --ranks 256/256] [--contexts N ...] [--batch N]``
times one layer's attention kernel alone (over latents: rebuild, RoPE, softmax and latent values) for one token per
request. Defaults are the paper's: 32 heads of 128, groups of 4, ranks 128/384 per group (1024 and 3072 in all), 4K to
256K tokens. ``--smoke`` tries the harness on a CPU.
"""

from collections.abc import Callable

import torch

from benchmarks.kernels.roofline_model import Work
from benchmarks.latency.attention_case import Arm, Case
from benchmarks.latency.harness import Experiment, run


def attend_alone(arm: Arm, case: Case) -> tuple[Callable[[], torch.Tensor], Work]:
    """The kernel on one random query per request."""
    query = case.random(case.batch.requests, case.layer.shape.num_heads, case.layer.shape.head_dim)
    return lambda: arm.attend(query), Work(0, 0, 0)


EXPERIMENT = Experiment("kernel_latency", "decode attention of one layer, the kernel alone", attend_alone)

if __name__ == "__main__":
    run(EXPERIMENT)
