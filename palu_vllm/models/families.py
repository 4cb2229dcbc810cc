"""The palu form of each supported family, as vLLM loads it.

All are one network (RMSNorm, rotary embedding, gated SiLU) with or without biases and norms of queries and keys, so all
are vLLM's Llama with its attention exchanged through the argument that vLLM has for this. Biases and norms come with
``palu_config``, a sliding window with vLLM's configuration of the cache.
"""

from collections.abc import Iterable

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.models.llama import LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from vllm.model_executor.models.utils import WeightsMapper

from palu_vllm.families import CAUSAL_LM, FAMILIES, palu_class
from palu_vllm.loading.checked import checked
from palu_vllm.loading.leading import leading_latents
from palu_vllm.loading.mixed import mixed_latents
from palu_vllm.loading.rounded import rounded
from palu_vllm.models.attention import PaluAttention
from palu_vllm.server.banner import show_banner
from palu_vllm.startup.adapters import AdapterNames
from palu_vllm.startup.served import served_config


class PaluDecoderLayer(LlamaDecoderLayer):
    def __init__(self, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config, prefix, attn_layer_type=PaluAttention)


class PaluModel(LlamaModel):
    # Llama's, without the joining of q_proj, k_proj and v_proj
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_stacked={".gate_proj": (".gate_up_proj", 0), ".up_proj": (".gate_up_proj", 1)}
    )


class PaluForCausalLM(LlamaForCausalLM):
    hf_to_vllm_mapper = PaluModel.hf_to_vllm_mapper
    packed_modules_mapping = {"gate_up_proj": ["gate_proj", "up_proj"]}

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=PaluDecoderLayer)
        self.served = served_config(vllm_config)
        self.hf_to_vllm_mapper = AdapterNames.of(self.served)  # changes no name, refuses adapters
        show_banner(vllm_config)

    def _init_model(self, vllm_config: VllmConfig, prefix: str, layer_type: type[nn.Module]) -> PaluModel:
        return PaluModel(vllm_config=vllm_config, prefix=prefix, layer_type=layer_type)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Loads a checkpoint; raises CheckpointError at the first tensor whose name or shape is not expected."""
        changes = self.served.files, self.served.palu, self.served.geometry
        kept = leading_latents(checked(weights, self.config.to_dict()), *changes)
        return super().load_weights(rounded(mixed_latents(kept, *changes), dict(self.named_parameters())))


for _family in FAMILIES:
    _name = palu_class(_family, CAUSAL_LM)
    globals()[_name] = type(_name, (PaluForCausalLM,), {"__module__": __name__})
