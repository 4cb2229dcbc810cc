"""What this package takes for granted about vLLM. Where a test fails, the module that it names must change first."""

import inspect
import json
from dataclasses import fields
from pathlib import Path

import pytest
import vllm
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import ColumnParallelLinear, RowParallelLinear
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.model_loader.weight_utils import sharded_weight_loader
from vllm.model_executor.models import ModelRegistry
from vllm.model_executor.models.llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM
from vllm.utils.torch_utils import _encode_layer_name
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionImpl,
    AttentionMetadataBuilder,
    CommonAttentionMetadata,
)
from vllm.v1.attention.backends.registry import register_backend

from palu_vllm.attention_backend.backend import PaluBackend
from palu_vllm.attention_backend.codec.impl import CodecImpl
from palu_vllm.attention_backend.impl import PaluImpl
from palu_vllm.attention_backend.metadata import PaluMetadataBuilder
from palu_vllm.models.attention import PaluAttention
from tests.palu_vllm.vllm_contract.__main__ import judge, lost_groups
from tests.palu_vllm.vllm_contract.check import complaint
from tests.palu_vllm.vllm_contract.sources import Sources
from tests.palu_vllm.vllm_contract.uses import ROOT, of_file

TAKEN = {  # the callable, the parameters that this package passes by name or receives, the module that does
    "plugin.register_backend": (register_backend, ["backend", "class_path"]),
    "plugin.register_model": (ModelRegistry.register_model, ["model_arch", "model_cls"]),
    "plugin.verify": (VllmConfig.try_verify_and_update_config, ["self"]),
    "layer.Attention": (
        Attention.__init__,
        ["num_heads", "head_size", "scale", "num_kv_heads", "cache_config", "per_layer_sliding_window", "prefix"]
        + ["attn_backend", "head_size_v", "extra_impl_args"],
    ),
    "attach.Attention": (
        Attention.__init__,
        ["self", "num_heads", "head_size", "num_kv_heads", "head_size_v", "prefix", "attn_type", "attn_backend"]
        + ["kv_sharing_target_layer_name", "extra_impl_args"],
    ),
    "codec.customize_spec": (AttentionBackend.customize_spec, ["spec"]),
    "layer.encode": (_encode_layer_name, []),
    "backend.build": (
        AttentionMetadataBuilder.build,
        ["self", "common_prefix_len", "common_attn_metadata", "fast_build"],
    ),
    "backend.get_cudagraph_support": (
        AttentionMetadataBuilder.get_cudagraph_support,
        ["vllm_config", "kv_cache_spec"],
    ),
    "codec.build_for_cudagraph_capture": (
        AttentionMetadataBuilder.build_for_cudagraph_capture,
        ["self", "common_attn_metadata"],
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


@pytest.mark.parametrize("impl", [PaluImpl, CodecImpl])
def test_impl_takes_what_attention_passes(impl):
    assert parameters(impl.__init__)[:11] == parameters(AttentionImpl.__init__)
    assert parameters(impl.forward) == parameters(AttentionImpl.forward)


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


def test_everything_used_is_granted_by_the_installed_vllm():
    """Names, attributes, calls and overrides, as they stand in the sources. Also asked of versions not installed."""
    judged = judge(Path(vllm.__file__).parents[1])
    assert not judged["complaints"]
    assert judged["names"] > 100


def test_the_page_says_what_was_found_about_a_version_that_is_not_installed():
    found = json.loads((ROOT / "benchmarks" / "results" / "vllm_contract_0.33.0.json").read_text())
    row = f"| 0.33.0, CUDA wheel | {found['uses']} | {found['names']} | {len(found['complaints'])} |"
    assert row in (ROOT / "docs" / "reference" / "compatibility.md").read_text()


def test_a_group_of_entry_points_that_is_gone_is_found():
    installed = Path(vllm.__file__).parents[1]
    assert lost_groups('"vllm.general_plugins": []', installed) == []
    assert lost_groups('"vllm.no_plugins": []', installed) == ["setup.py: the group vllm.no_plugins is not there"]


@pytest.mark.parametrize(
    ("theirs", "complaint_"),
    [
        ("def work(a, b): ...", None),
        ("def work(a, b, c=1): ...", None),
        ("def work(a, *, b): ...", None),
        ("def work(a, **rest): ...", None),
        ("def work(a): ...", "takes no b"),
        ("def work(a, b, c): ...", "wants c too"),
        ("def work(a, b, *, c): ...", "wants c too"),
        ("def work(*, a, b): ...", "takes 0 arguments by position, not 1"),
        ("def other(a, b): ...", "is not there"),
    ],
)
def test_a_call_that_no_longer_fits_is_found(tmp_path, theirs, complaint_):
    ours = "from vllm.tools import work\nwork(1, b=2)\n"
    assert_only(tmp_path, ours, f"{theirs}\n", complaint_)


@pytest.mark.parametrize(
    ("theirs", "complaint_"),
    [
        ("def act(self, a): ...", None),
        ("def act(self, a, b=None): ...", "hands over b, which the own one does not take"),
        ("def other(self, a): ...", "is not there"),
        ("act = 1", "is no method any more"),
    ],
)
def test_an_override_that_no_longer_fits_is_found(tmp_path, theirs, complaint_):
    ours = "from vllm.tools import Base\nclass Own(Base):\n    def act(self, a): ...\n"
    assert_only(tmp_path, ours, f"class Base:\n    {theirs}\n", complaint_)


@pytest.mark.parametrize(
    "ours",
    [
        "def f(config: Config):\n    return config.cache.size",
        "def f(config: 'Config | None'):\n    cache = config.cache\n    return cache.size",
        "def f(config: Config):\n    cache, other = config.cache, 1\n    return getattr(cache, 'size', None)",
        "T: tuple[Callable[[Config], int]] = (lambda config: config.cache.size,)",
        "class Own(Config):\n    def f(self):\n        return self.cache.size",
    ],
)
@pytest.mark.parametrize("field", ["size", "length"])
def test_a_field_that_is_gone_is_found(tmp_path, ours, field):
    theirs = f"class Cache:\n    {field}: int\nclass Config:\n    cache: Cache | None = None\n    def f(self): ...\n"
    assert_only(
        tmp_path, f"from vllm.tools import Config\n{ours}\n", theirs, None if field == "size" else "is not there"
    )


def assert_only(directory: Path, ours: str, theirs: str, expected: str | None) -> None:
    """The first complaint about ``ours`` is ``expected``, where ``vllm.tools`` reads ``theirs``."""
    (directory / "vllm").mkdir()
    (directory / "vllm" / "__init__.py").touch()
    (directory / "vllm" / "tools.py").write_text(theirs)
    (directory / "own.py").write_text(ours)
    sources = Sources(directory)
    found = [text for use in of_file(directory / "own.py") if (text := complaint(use, sources))]
    assert bool(found) == bool(expected) and (not expected or found[0].endswith(expected)), found
