"""The second moment of what keys and values are projected from, layer by layer.

The activations between two layers lie in a file; in memory are one sample and one matrix of statistics.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from offline_compress.activations import activation_file
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


def layer_statistics(runner: LayerRunner, tokens: torch.Tensor, scratch: Path) -> Iterator[torch.Tensor]:
    """For every layer in order, the mean of ``x x^T [hidden, hidden]`` in float64 over all tokens.

    ``tokens`` is ``[samples, seqlen]``. K and V share their input, hence one matrix. Activations are those of the
    dense model: errors of earlier layers do not enter.
    """
    hidden_size = runner.source.geometry.hidden_size
    with activation_file(scratch, (tokens.shape[1], hidden_size)) as samples:
        for number, row in enumerate(tokens):
            samples.write(number, runner.embed(row))
        for layer in range(runner.source.geometry.num_layers):
            module = runner.load(layer)
            with second_moment(kv_input(module), hidden_size, runner.device) as total:
                for number in range(len(tokens)):
                    samples.write(number, runner.run(module, samples.read(number)))
                    release_freed_memory()
            del module
            yield total.div_(tokens.numel())
            del total
