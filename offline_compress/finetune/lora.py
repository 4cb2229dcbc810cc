"""LoRA (Hu et al., 2021) on a compressed model of transformers: adapters by ``peft``, and the weights they lead to.

Every linear layer of a decoder layer gets an adapter, the down-projections of latents and the (fused) output projection
among them; ``k_up`` and ``v_up`` stay. Merged weights have the shapes that the checkpoint has.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import nn

from offline_compress.run.errors import CompressionError
from palu_vllm.format.latent_format import LatentFormat
from palu_vllm.format.packing import rounded

MODULES = ("q_proj", "k_down", "v_down", "o_proj", "gate_proj", "up_proj", "down_proj")
ADAPTER = "default"


def add_adapters(model: nn.Module, rank: int, alpha: float) -> list[nn.Parameter]:
    """Puts an adapter of ``rank`` onto every module of ``MODULES``; returns what is to be trained, all else is frozen.

    The model computes what it did before. Raises CompressionError if ``peft`` is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise CompressionError("palu-finetune needs peft; pip install palu-vllm[finetune].") from error
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(MODULES), bias="none")
    inject_adapter_in_model(config, model, ADAPTER)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def merged_weights(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """``(name in the checkpoint, weight)`` of every module with an adapter; unchanged numbers stay bit for bit."""
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            weight, change = module.get_base_layer().weight.detach(), module.get_delta_weight(ADAPTER).detach()
            yield f"{name}.weight", torch.where(change == 0, weight, weight + change)


def simulate_packing(model: nn.Module) -> None:
    """Sends latents through their few bits where the cache packs them, with gradients that pass straight through.

    Bytes have no gradient, so the attention is told to keep numbers, which are rounded before it gets them.
    """
    for layer in model.model.layers:
        attention = layer.self_attn
        shape, slot = attention.shape, attention.shape.slot
        if slot is not None and not shape.shared:
            attention.k_down.register_forward_hook(_straight_through(slot.key, shape.rank_k))
            attention.v_down.register_forward_hook(_straight_through(slot.value, shape.rank_v))
        attention.shape = replace(shape, slot=None)


def _straight_through(form: LatentFormat, rank: int) -> Callable[[nn.Module, tuple, torch.Tensor], torch.Tensor]:
    def hook(_module: nn.Module, _inputs: tuple, latents: torch.Tensor) -> torch.Tensor:
        stored = rounded(latents.detach().unflatten(-1, (-1, rank)), form).flatten(-2)
        return latents + (stored.to(latents.dtype) - latents).detach()

    return hook
