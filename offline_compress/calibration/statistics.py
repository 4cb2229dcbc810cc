"""What keys and values are projected from, layer by layer: its second moment, and some of it as it is.

The activations between two layers lie in files; in memory are one sample and one matrix of statistics.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from offline_compress.calibration.activations import LayerInputs, remove_inputs
from offline_compress.model.access import WIDENED_ROWS, LayerRunner, after_attention, kv_input, stored_bytes
from offline_compress.plan import Plan
from offline_compress.run.memory import release_freed_memory

FLOAT32, FLOAT64 = 4, 8
CHUNK_TOKENS = 512
KEPT_TOKENS = 512  # of a sample that is kept


@dataclass(frozen=True)
class KeptSample:
    """The beginning of a calibration sample at one layer, float32."""

    inputs: torch.Tensor  # [tokens, hidden], what keys and values are projected from
    energy: torch.Tensor  # [tokens], squared length of the residual stream behind attention


@dataclass(frozen=True)
class LayerStatistics:
    """Of one layer's inputs."""

    second_moment: torch.Tensor  # mean of x x^T, float64 [hidden, hidden]
    samples: tuple[KeptSample, ...]


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


@contextmanager
def kept_sample(module: nn.Module) -> Iterator[list[KeptSample]]:
    """A list that holds what ``module``, a decoder layer, has seen of one sample after the block has run it."""
    kept: list[KeptSample] = []
    seen: list[torch.Tensor] = []

    def take(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(inputs[0].flatten(0, -2)[:KEPT_TOKENS].clone())

    handles = [part.register_forward_pre_hook(take) for part in (kv_input(module), after_attention(module))]
    try:
        yield kept
        inputs, stream = seen
        kept.append(KeptSample(inputs, stream.square().sum(-1)))
    finally:
        for handle in handles:
            handle.remove()


def layer_statistics(
    runner: LayerRunner, tokens: torch.Tensor, scratch: Path, keep: int = 0, start: int = 0
) -> Iterator[LayerStatistics]:
    """For every layer from ``start`` on, statistics of its inputs over all tokens, and the first ``keep`` samples.

    ``tokens`` is ``[samples, seqlen]``. K and V share their input, hence one matrix. Activations are those of the
    dense model: errors of earlier layers do not enter. The inputs of a layer and of the next stay in ``scratch`` until
    the next layer is asked for: whoever has then noted that the layer is finished can ``start`` behind it.
    """
    geometry = runner.source.geometry
    inputs = LayerInputs(scratch, (tokens.shape[1], geometry.hidden_size))
    if start == 0:
        with inputs.writing(0) as samples:
            for number, row in enumerate(tokens):
                samples.write(number, runner.embed(row))
    for layer in range(start, geometry.num_layers):
        inputs.keep_only(layer)
        # nothing here may keep a matrix alive while the next layer runs
        yield _statistics(runner, layer, len(tokens), inputs, keep)
    remove_inputs(scratch)


def kept_tokens(plan: Plan) -> int:
    """Of a sample that is kept."""
    return min(plan.seqlen, KEPT_TOKENS)


def second_moment_bytes(plan: Plan) -> int:
    return FLOAT64 * plan.geometry.hidden_size**2


def kept_bytes(plan: Plan, samples: int) -> int:
    """Of ``samples`` that are kept at one layer."""
    return samples * FLOAT32 * kept_tokens(plan) * plan.geometry.hidden_size


def running_bytes(plan: Plan) -> int:
    """A sample and what a layer makes of it, in float32: whichever of its steps needs most at once."""
    hidden, inner = plan.geometry.hidden_size, plan.config.intermediate_size
    attention, gate, down = 9 * hidden, 3 * hidden + 3 * inner, 4 * hidden + inner
    widened = (FLOAT32 + stored_bytes(plan.source)) * WIDENED_ROWS * inner
    return max(FLOAT32 * plan.seqlen * max(attention, gate), FLOAT32 * plan.seqlen * down + widened)


def _statistics(runner: LayerRunner, layer: int, count: int, inputs: LayerInputs, keep: int) -> LayerStatistics:
    """Runs ``layer`` on ``count`` samples."""
    module, width = runner.load(layer), runner.source.geometry.hidden_size
    kept: list[KeptSample] = []
    with (
        inputs.reading(layer) as before,
        inputs.writing(layer + 1) as after,
        second_moment(kv_input(module), width, runner.device) as total,
    ):
        for number in range(count):
            one: AbstractContextManager[list[KeptSample]]
            one = kept_sample(module) if number < keep else nullcontext([])
            with one as found:
                after.write(number, runner.run(module, before.read(number)))
            kept += found
            release_freed_memory()
    return LayerStatistics(total.div_(count * inputs.shape[0]), tuple(kept))
