"""Rounds tensors to the dtype that they are served in, where vLLM would do the same and warn of each one."""

from collections.abc import Iterable, Iterator, Mapping

import torch


def rounded(
    weights: Iterable[tuple[str, torch.Tensor]], parameters: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Passes tensors on in the dtype of the parameter of their name, those without one and integers as they are.

    That a server rounds float32 is said once, by ``palu_vllm.startup.notices``.
    """
    for name, tensor in weights:
        wanted = parameters.get(name, tensor).dtype
        if tensor.is_floating_point() and wanted.is_floating_point:
            tensor = tensor.to(wanted)
        yield name, tensor
