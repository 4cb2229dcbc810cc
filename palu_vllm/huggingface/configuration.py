"""transformers' configuration classes of the compressed families: the dense ones plus ``palu_config``.

``palu_config`` stays the plain dict of ``config.json``; it is checked where a model is built from it.
"""

from typing import Any

from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.mistral.configuration_mistral import MistralConfig
from transformers.models.phi3.configuration_phi3 import Phi3Config
from transformers.models.qwen2.configuration_qwen2 import Qwen2Config
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config


class PaluLlamaConfig(LlamaConfig):
    model_type = "palu_llama"
    base_model_tp_plan = None  # transformers' plan shards k_proj and v_proj, which are gone
    palu_config: dict[str, Any] | None = None


class PaluMistralConfig(MistralConfig):
    model_type = "palu_mistral"
    base_model_tp_plan = None
    palu_config: dict[str, Any] | None = None


class PaluQwen2Config(Qwen2Config):
    model_type = "palu_qwen2"
    base_model_tp_plan = None
    palu_config: dict[str, Any] | None = None


class PaluQwen3Config(Qwen3Config):
    model_type = "palu_qwen3"
    base_model_tp_plan = None
    palu_config: dict[str, Any] | None = None


class PaluPhi3Config(Phi3Config):
    model_type = "palu_phi3"
    base_model_tp_plan = None
    palu_config: dict[str, Any] | None = None
