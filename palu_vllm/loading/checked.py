"""Checks tensors while vLLM loads them: its own loaders accept some wrong shapes, and NaNs, and then serve garbage."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from palu_vllm.format.checkpoint import CheckpointError, all_finite, expected_tensors


def checked(
    weights: Iterable[tuple[str, torch.Tensor]], config: Mapping[str, Any]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Passes whole tensors on; raises CheckpointError at one that a parsed ``config.json`` does not promise, and at one
    with a NaN or an infinity.

    Missing tensors are found by vLLM, which knows the parameters of its pipeline stage.
    """
    expected = expected_tensors(config)
    for name, tensor in weights:
        if name not in expected:
            raise CheckpointError(f"the checkpoint has the unexpected tensor {name}; compress the model again.")
        if tuple(tensor.shape) != expected[name]:
            raise CheckpointError(
                f"{name} has shape {list(tensor.shape)}, expected {list(expected[name])}; compress the model again."
            )
        if not all_finite(tensor):
            raise CheckpointError(f"{name} has values that are not finite; fetch the checkpoint or compress it again.")
        yield name, tensor
