"""transformers' configuration classes of the compressed families: the dense ones plus ``palu_config``.

``palu_config`` stays the plain dict of ``config.json``; it is checked where a model is built from it.
"""

import types
from importlib import import_module
from typing import Any

from transformers import PreTrainedConfig

from palu_vllm.families import CONFIG, FAMILIES, palu_class, palu_type


def _configuration(family: str) -> type[PreTrainedConfig]:
    """The class of a family. It is an attribute of this module, where pickle looks for it."""
    dense = getattr(import_module(f"transformers.models.{family}.configuration_{family}"), FAMILIES[family][0] + CONFIG)

    def fill(namespace: dict[str, Any]) -> None:
        namespace |= {
            "__module__": __name__,
            "__annotations__": {"palu_config": dict[str, Any] | None},
            "palu_config": None,
            "model_type": palu_type(family),
            "base_model_tp_plan": None,  # transformers' plan shards k_proj and v_proj, which are gone
        }

    return types.new_class(palu_class(family, CONFIG), (dense,), exec_body=fill)


CONFIGURATIONS = {family: _configuration(family) for family in FAMILIES}
globals().update({configuration.__name__: configuration for configuration in CONFIGURATIONS.values()})
