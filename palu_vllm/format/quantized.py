"""How compressed-tensors stores quantized linear layers, as far as palu models are served with them.

The factors that make keys and values stay numbers: their product is what the cache was compressed for. Names of layers
match as in vLLM, which also takes ``Linear`` for all of them.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

METHOD = "compressed-tensors"
LINEAR = ("q_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")
FACTORS = ("k_down", "v_down")
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Scheme:
    """Symmetric integers of ``bits`` with a scale per row, or per ``group_size`` numbers of a row."""

    targets: tuple[str, ...]
    bits: int
    packed: bool
    group_size: int | None

    @classmethod
    def of(cls, group: Mapping[str, Any], default_format: Any) -> Self:
        """One of the ``config_groups``. Raises ValueError with one sentence for what is not served."""
        weights, inputs = group.get("weights") or {}, group.get("input_activations")
        stored = group.get("format") or default_format
        per_row = weights.get("strategy") == "channel"
        integers = weights.get("type") == "int" and weights.get("symmetric") is True
        plain = not (weights.get("actorder") or weights.get("dynamic") or group.get("output_activations"))
        eight = stored == "int-quantized" and weights.get("num_bits") == 8 and per_row and _per_token(inputs)
        packed = stored == "pack-quantized" and weights.get("num_bits") in (4, 8) and inputs is None
        if not (integers and plain and (eight or packed and (per_row or weights.get("strategy") == "group"))):
            raise ValueError(
                f"quantization_config stores weights as {stored} in a way that is not proven for palu models; "
                "quantize with the scheme W8A8 (int-quantized, dynamic per token) or W4A16 (pack-quantized, symmetric)."
            )
        size = None if per_row else int(weights.get("group_size") or 0)
        return cls(tuple(group.get("targets") or ()), weights["num_bits"], packed, size)

    def tensors(self, module: str, shape: Shape) -> dict[str, Shape]:
        """``{full name: shape}`` in the place of ``module.weight [rows, inputs]``."""
        rows, inputs = shape
        if self.group_size is not None and (self.group_size < 1 or inputs % self.group_size):
            raise ValueError(
                f"{module} has {inputs} inputs, which groups of {self.group_size} numbers do not divide; "
                "put it into the ignore list of the quantization, or choose another group size."
            )
        scales = {f"{module}.weight_scale": (rows, inputs // self.group_size if self.group_size else 1)}
        if not self.packed:
            return {f"{module}.weight": shape} | scales
        words = -(-inputs * self.bits // 32)
        return {f"{module}.weight_packed": (rows, words), f"{module}.weight_shape": (2,)} | scales


def _per_token(inputs: Mapping[str, Any] | None) -> bool:
    wanted = {"type": "int", "num_bits": 8, "dynamic": True, "strategy": "token", "symmetric": True}
    return inputs is not None and all(inputs.get(name) == value for name, value in wanted.items())


def stored_tensors(expected: Mapping[str, Shape], config: Mapping[str, Any]) -> dict[str, Shape]:
    """``expected``, names and shapes of a checkpoint that is not quantized, as ``config.json`` says they are stored.

    Raises ValueError with one sentence for a quantization that is not served.
    """
    section = config.get("quantization_config")
    if not section:
        return dict(expected)
    schemes, ignored = _schemes(section), section.get("ignore") or []
    stored: dict[str, Shape] = {}
    for name, shape in expected.items():
        module, _, kind = name.rpartition(".")
        layer = module.rpartition(".")[2]
        scheme = _scheme(module, schemes, ignored) if kind == "weight" and layer in LINEAR + FACTORS else None
        if scheme is not None and layer in FACTORS:
            raise ValueError(
                f"quantization_config covers {module}, a factor of the latents, which must stay unquantized; "
                'quantize again with "re:.*k_down" and "re:.*v_down" in the ignore list.'
            )
        stored |= {name: shape} if scheme is None else scheme.tensors(module, shape)
    return stored


def _schemes(section: Mapping[str, Any]) -> list[Scheme]:
    if section.get("quant_method") != METHOD:
        raise ValueError(
            f"weight quantization by {section.get('quant_method')} is not proven for palu models; "
            "quantize with compressed-tensors after palu-compress, or serve the checkpoint unquantized."
        )
    if section.get("kv_cache_scheme"):
        raise ValueError(
            "quantization_config has a kv_cache_scheme, which latents do not take; quantize without it, and compress "
            "with --latent-bits, which packs latents."
        )
    if section.get("transform_config") or section.get("sparsity_config"):
        raise ValueError("quantization_config has transforms or sparsity, which are not proven for palu models.")
    return [Scheme.of(group, section.get("format")) for group in (section.get("config_groups") or {}).values()]


def _scheme(module: str, schemes: Iterable[Scheme], ignored: Iterable[str]) -> Scheme | None:
    if any(_matches(module, pattern) for pattern in ignored):
        return None
    matching = (s for s in schemes if any(target == "Linear" or _matches(module, target) for target in s.targets))
    return next(matching, None)


def _matches(module: str, pattern: str) -> bool:
    return bool(re.match(pattern[3:], module)) if pattern.startswith("re:") else pattern == module
