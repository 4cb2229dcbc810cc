"""What this package takes for granted about vLLM. Where a test fails, the module that it names must change first."""

import inspect
from dataclasses import fields

import pytest
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import ColumnParallelLinear, RowParallelLinear
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.model_loader.weight_utils import sharded_weight_loader
from vllm.model_executor.models import ModelRegistry
from vllm.model_executor.models.llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM
from vllm.utils.torch_utils import _encode_layer_name
from vllm.v1.attention.backend import AttentionImpl, AttentionMetadataBuilder, CommonAttentionMetadata
from vllm.v1.attention.backends.registry import register_backend

from palu_vllm.attention_backend.backend import PaluBackend, PaluMetadataBuilder
from palu_vllm.attention_backend.impl import PaluImpl
from palu_vllm.models.attention import PaluAttention

TAKEN = {  # the callable, the parameters that this package passes by name or receives, the module that does
    "plugin.register_backend": (register_backend, ["backend", "class_path"]),
    "plugin.register_model": (ModelRegistry.register_model, ["model_arch", "model_cls"]),
    "plugin.verify": (VllmConfig.try_verify_and_update_config, ["self"]),
    "layer.Attention": (
        Attention.__init__,
        ["num_heads", "head_size", "scale", "num_kv_heads", "cache_config", "per_layer_sliding_window", "prefix"]
        + ["attn_backend", "head_size_v", "extra_impl_args"],
    ),
    "layer.encode": (_encode_layer_name, []),
    "backend.build": (
        AttentionMetadataBuilder.build,
        ["self", "common_prefix_len", "common_attn_metadata", "fast_build"],
    ),
    "models.get_rope": (get_rope, ["head_size", "max_position", "rope_parameters", "dtype"]),
    "models.ColumnParallelLinear": (ColumnParallelLinear.__init__, ["bias", "prefix", "return_bias"]),
    "models.RowParallelLinear": (RowParallelLinear.__init__, ["bias", "prefix", "return_bias"]),
    "models.sharded_weight_loader": (sharded_weight_loader, ["shard_axis"]),
    "models.LlamaForCausalLM": (LlamaForCausalLM.__init__, ["vllm_config", "prefix", "layer_type"]),
    "models.init_model": (LlamaForCausalLM._init_model, ["vllm_config", "prefix", "layer_type"]),
    "models.LlamaDecoderLayer": (LlamaDecoderLayer.__init__, ["vllm_config", "prefix", "attn_layer_type"]),
}


@pytest.mark.parametrize("use", TAKEN)
def test_parameters(use):
    taken, names = TAKEN[use]
    assert set(names) <= inspect.signature(taken).parameters.keys()


def parameters(callable_) -> list[str]:
    return list(inspect.signature(callable_).parameters)


def test_impl_takes_what_attention_passes():
    assert parameters(PaluImpl.__init__)[:11] == parameters(AttentionImpl.__init__)
    assert parameters(PaluImpl.forward) == parameters(AttentionImpl.forward)


def test_builder_is_built_as_vllm_builds_it():
    assert parameters(PaluMetadataBuilder.__init__) == parameters(AttentionMetadataBuilder.__init__)


def test_attention_takes_what_the_decoder_layer_passes():
    assert parameters(PaluAttention.__init__) == parameters(LlamaAttention.__init__)


def test_common_metadata_has_the_fields_that_the_builder_reads():
    names = {field.name for field in fields(CommonAttentionMetadata)}
    read = {"block_table_tensor", "seq_lens", "query_start_loc", "max_query_len", "max_seq_len", "num_actual_tokens"}
    assert read <= names


def test_backend_answers_all_that_is_abstract():
    assert not PaluBackend.__abstractmethods__
