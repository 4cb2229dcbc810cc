"""Everything of the output directory that is not computed: tensor list and ``config.json``."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from offline_compress.checkpoint.writer import TensorSpec
from offline_compress.model.access import is_replaced
from offline_compress.plan import Plan
from palu_vllm.families import CAUSAL_LM, palu_class, palu_type
from palu_vllm.format.checkpoint import attention_tensors
from palu_vllm.format.config import PaluConfig

DROPPED = ("torch_dtype", "_name_or_path", "auto_map")


def tensor_specs(plan: Plan, palu: PaluConfig) -> Iterator[TensorSpec]:
    """All tensors of the output: first what the dense model keeps, then attention, layer by layer.

    With ``--dtype auto`` tensors that are passed through keep the dtype they are stored in.
    """
    dtype = getattr(torch, plan.dtype)
    for name, stored in plan.source.tensors.items():
        if not is_replaced(name):
            keep = plan.options.dtype == "auto" or not stored.dtype.is_floating_point
            yield TensorSpec(name, stored.dtype if keep else dtype, stored.shape)
    for name, shape in attention_tensors(palu, plan.geometry).items():
        yield TensorSpec(name, dtype, shape)


def output_config(plan: Plan, palu: PaluConfig) -> dict[str, Any]:
    """The ``config.json`` of a compression."""
    return compressed_config(plan.source.config, plan.dtype, palu)


def compressed_config(dense: Mapping[str, Any], dtype: str, palu: PaluConfig) -> dict[str, Any]:
    """The dense ``config.json`` with the compressed model type, the dtype and ``palu_config``."""
    family = dense["model_type"]
    config = {key: value for key, value in dense.items() if key not in DROPPED}
    config |= {"model_type": palu_type(family), "architectures": [palu_class(family, CAUSAL_LM)], "dtype": dtype}
    return config | {"palu_config": palu.model_dump()}
