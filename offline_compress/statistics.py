"""The second moment of what keys and values are projected from, layer by layer.

One decoder layer is in memory at a time; the activations between two layers lie in a memory-mapped file.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from offline_compress.memory import release_freed_memory
from offline_compress.model_access import LayerRunner, kv_input

CHUNK_TOKENS = 512


@contextmanager
def second_moment(module: nn.Module, width: int, device: torch.device) -> Iterator[torch.Tensor]:
    """``sum x x^T [width, width]`` in float64 over every input that ``module`` sees inside the block."""
    total = torch.zeros(width, width, dtype=torch.float64, device=device)

    def accumulate(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        for rows in inputs[0].reshape(-1, width).split(CHUNK_TOKENS):
            wide = rows.double()
            total.addmm_(wide.T, wide)

    handle = module.register_forward_pre_hook(accumulate)
    try:
        yield total
    finally:
        handle.remove()


def activation_buffer(directory: Path, size: tuple[int, ...]) -> torch.Tensor:
    """A float32 tensor in a file of ``directory`` that has no name any more: gone with the process."""
    path = directory / "activations.bin"
    numel = torch.Size(size).numel()
    buffer = torch.from_file(str(path), shared=True, size=numel, dtype=torch.float32)
    path.unlink()
    return buffer.view(size)


@torch.no_grad()
def layer_statistics(runner: LayerRunner, tokens: torch.Tensor, scratch: Path) -> Iterator[torch.Tensor]:
    """For every layer in order, the mean of ``x x^T [hidden, hidden]`` in float64 over all tokens.

    ``tokens`` is ``[samples, seqlen]``. K and V share their input, hence one matrix. Activations are those of the
    dense model: errors of earlier layers do not enter.
    """
    hidden_size = runner.source.geometry.hidden_size
    hidden = activation_buffer(scratch, (*tokens.shape, hidden_size))
    for sample, row in zip(hidden, tokens, strict=True):
        sample.copy_(runner.embed(row))
    for layer in range(runner.source.geometry.num_layers):
        module = runner.load(layer)
        with second_moment(kv_input(module), hidden_size, runner.device) as total:
            for sample in hidden:
                sample.copy_(runner.run(module, sample))
                release_freed_memory()
        del module
        release_freed_memory()
        yield total.div_(tokens.numel())
        del total
