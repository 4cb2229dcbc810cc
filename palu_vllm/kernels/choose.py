"""Which implementation of attention runs: over latents torch or Triton, over codec slots Triton, C++ or torch."""

import os
import warnings
from functools import cache
from typing import Any

from palu_vllm.kernels.codec.reference import CodecAttention

PATHS = ("torch", "triton")


def kernel_path(device_type: str) -> str:
    """``torch`` on a CPU and ``triton`` elsewhere, unless the environment variable ``PALU_KERNELS`` names one.

    Raises ValueError for another name, and for Triton on a CPU without ``TRITON_INTERPRET=1``.
    """
    path = os.environ.get("PALU_KERNELS") or ("torch" if device_type == "cpu" else "triton")
    if path not in PATHS:
        raise ValueError(f"PALU_KERNELS={path} is not known; expected {' or '.join(PATHS)}.")
    if path == "triton" and device_type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError("PALU_KERNELS=triton runs on a CPU only in Triton's interpreter; set TRITON_INTERPRET=1 too.")
    return path


def implementation(path: str) -> Any:
    """The class that serves a path; built as ``cls(LayerShape, KeyRebuild, v_up=)``, see ``kernels.operands``."""
    if path == "torch":
        from palu_vllm.kernels.cpu.attention import TorchAttention

        return TorchAttention
    from palu_vllm.kernels.gpu.launch import TritonAttention

    return TritonAttention


def codec_path(device_type: str) -> str:
    """What runs over codec slots: ``triton`` elsewhere than on a CPU, there ``C++``, or ``torch`` and in parentheses
    why not C++; the environment variable ``PALU_KERNELS`` decides first, as in :func:`kernel_path`.
    """
    if device_type != "cpu" or os.environ.get("PALU_KERNELS"):
        return kernel_path(device_type)
    from palu_vllm.kernels.cpu.compiled import why_not

    return "C++" if why_not() is None else f"torch ({why_not()})"


def codec_attention(device_type: str) -> type:
    """The class that serves codec slots on a device; built as ``cls(LayerCodec, CodecSettings)``."""
    path = codec_path(device_type)
    if path == "C++":
        from palu_vllm.kernels.cpu.codec_attention import CpuCodecAttention

        return CpuCodecAttention
    if path == "triton":
        from palu_vllm.kernels.gpu.codec.attention import TritonCodecAttention

        return TritonCodecAttention
    if "(" in path:
        _warn(path)
    return CodecAttention


@cache
def _warn(path: str) -> None:
    warnings.warn(f"attention over codec slots runs several times slower than it could, in {path}", stacklevel=3)
