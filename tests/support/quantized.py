"""Checkpoints with linear layers of 4 bits by plain rounding, in the layouts of AutoAWQ and of AutoGPTQ."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from vllm.model_executor.layers.quantization.utils.quant_utils import awq_pack, gptq_pack, pack_cols

from tests.support.tiny_models import edit_config

GROUP = 32  # inputs with one scale
BITS = 4
CONFIGS = {
    "awq": {"quant_method": "awq", "bits": BITS, "group_size": GROUP, "zero_point": True, "version": "gemm"},
    "gptq": {"quant_method": "gptq", "bits": BITS, "group_size": GROUP, "sym": True, "desc_act": False,
             "checkpoint_format": "gptq"},
}  # fmt: skip


def rounded(weight: torch.Tensor, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Numbers 0 to 15 ``[out, groups, GROUP]``, the number that means 0, and scales ``[out, groups]`` of float16."""
    groups = weight.float().unflatten(1, (-1, GROUP))
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scale = torch.maximum(-low / 8, high / 7) if symmetric else (high - low) / 15
    scale = scale.clamp(min=1e-6).half()
    zero = torch.full_like(low, 8) if symmetric else (-low / scale).round().clamp(0, 15)
    numbers = (groups / scale.float()[..., None] + zero[..., None]).round().clamp(0, 15)
    return numbers.int(), zero.int(), scale


def tensors_of(weight: torch.Tensor, layout: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What the layout stores of ``weight [out, in]``, by the ends of names, and the weight that it means."""
    numbers, zero, scale = rounded(weight, symmetric=layout == "gptq")
    means = ((numbers - zero[..., None]) * scale.float()[..., None]).flatten(1)
    inputs, zeros = numbers.flatten(1).T.contiguous(), zero.T.contiguous()  # [in, out] and [groups, out]
    if layout == "awq":
        stored = {"qweight": awq_pack(inputs, BITS, *inputs.shape), "qzeros": awq_pack(zeros, BITS, *zeros.shape)}
    else:
        groups = torch.arange(weight.shape[1], dtype=torch.int32) // GROUP
        packed = gptq_pack(inputs, BITS, *inputs.shape), pack_cols(zeros - 1, BITS, *zeros.shape)
        stored = dict(zip(("qweight", "qzeros"), packed, strict=True)) | {"g_idx": groups}
    return {name: each.contiguous() for name, each in (stored | {"scales": scale.T}).items()}, means


def quantized_copies(model: Path, out: Path, layout: str) -> tuple[Path, Path]:
    """A checkpoint of the layout, and one of float32 with the same weights, of the linear layers of ``model``."""
    small, same = (shutil.copytree(model, out / name) for name in (layout, "same"))
    tensors = load_file(model / "model.safetensors")
    packed_up, plain = dict(tensors), dict(tensors)
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        stored, plain[name] = tensors_of(packed_up.pop(name), layout)
        packed_up |= {name.replace("weight", end): tensor for end, tensor in stored.items()}
    save_file(packed_up, small / "model.safetensors", {"format": "pt"})
    save_file(plain, same / "model.safetensors", {"format": "pt"})
    return edit_config(small, quantization_config=CONFIGS[layout]), same
