"""The backend claims what is proven elsewhere in these tests, and nothing that a permissive default would add."""

from types import SimpleNamespace

import pytest
import torch
from vllm.platforms.interface import DeviceCapability
from vllm.v1.attention.backend import AttentionBackend, AttentionType, CommonAttentionMetadata
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from palu_vllm.attention_backend.backend import PaluBackend
from palu_vllm.attention_backend.metadata import PaluMetadataBuilder
from palu_vllm.kernels.gpu.launch import TritonAttention
from palu_vllm.kernels.reference import ReferenceAttention
from palu_vllm.registry import palu_backend
from tests.palu_vllm.kernels.paged_batches import random_problem
from tests.support.shapes import LAYERS

ANSWERS = {
    "supports_sliding_window": True,
    "supports_kv_connector": True,
    "supports_batch_invariance": False,
    "supports_device_cpu_query_lens_mismatch": False,
    "supports_alibi_sqrt": False,
    "supports_sink": False,
    "supports_non_causal": False,
    "supports_mm_prefix": False,
    "supports_per_head_quant_scales": False,
    "supports_rswa": False,
    "supports_pcp": False,
    "supports_dcp": False,
    "is_mla": False,
    "is_sparse": False,
    "is_ssm": False,
}


@pytest.mark.parametrize("question", ANSWERS)
def test_answers(question):
    assert getattr(PaluBackend, question)() is ANSWERS[question]


def test_every_question_without_arguments_is_answered_here():
    asked = {name for name in dir(AttentionBackend) if name.startswith(("supports_", "is_"))}
    with_arguments = {
        "supports_attn_type",
        "supports_block_size",
        "supports_combination",
        "supports_compute_capability",
        "supports_dtype",
        "supports_head_size",
        "supports_kv_cache_dtype",
        "supports_non_causal_dcp",
    }
    assert asked - with_arguments == ANSWERS.keys()


def test_answers_that_depend():
    assert [PaluBackend.supports_block_size(size) for size in (16, 128, 8, 24)] == [True, True, False, False]
    assert not PaluBackend.supports_kv_cache_dtype("fp8")
    assert not PaluBackend.supports_attn_type(AttentionType.ENCODER_ONLY)
    assert not PaluBackend.supports_compute_capability(DeviceCapability(7, 5))
    assert PaluBackend.supports_compute_capability(DeviceCapability(9, 0))
    assert not PaluBackend.forward_includes_kv_cache_update


def test_the_enumeration_leads_here():
    assert palu_backend() is AttentionBackendEnum[PaluBackend.get_name()]
    assert palu_backend().get_class() is PaluBackend


def test_a_dense_layer_is_told_that_it_does_not_fit():
    (reason,) = PaluBackend.validate_configuration(head_size=64, dtype=torch.bfloat16)
    assert "palu-compress" in reason


@pytest.mark.parametrize(("upper_bound", "total"), [(None, None), (torch.tensor([17, 9], dtype=torch.int32), 26)])
def test_metadata_is_vllms_own_tensors(upper_bound, total):
    common = CommonAttentionMetadata(
        query_start_loc=torch.tensor([0, 1, 8], dtype=torch.int32),
        query_start_loc_cpu=torch.tensor([0, 1, 8], dtype=torch.int32),
        seq_lens=torch.tensor([17, 7], dtype=torch.int32),
        num_reqs=2,
        num_actual_tokens=8,
        max_query_len=7,
        max_seq_len=17,
        block_table_tensor=torch.zeros(2, 2, dtype=torch.int32),
        slot_mapping=torch.arange(8),
        seq_lens_cpu_upper_bound=upper_bound,
    )
    builder = PaluMetadataBuilder(SimpleNamespace(), ["layer"], SimpleNamespace(), torch.device("cpu"))
    metadata = builder.build(0, common)
    assert metadata.num_actual_tokens == 8
    assert metadata.batch.block_table is common.block_table_tensor
    assert metadata.batch.seq_lens is common.seq_lens
    assert metadata.batch.query_start_loc is common.query_start_loc
    assert (metadata.batch.max_query_len, metadata.batch.max_seq_len) == (7, 17)
    assert metadata.batch.total_seq_len == total


@pytest.mark.parametrize("drafted", [1, 3, 7])
def test_drafted_tokens_are_decoded_like_the_reference(drafted):
    """vLLM verifies drafts in one step: ``drafted + 1`` queries per request, fewer where drafts were cut short."""
    problem = random_problem(LAYERS["two_groups_bias_head_dim_80"], [(drafted + 1, 40), (1, 9), (2, 21)])
    batch = problem.batch
    common = CommonAttentionMetadata(
        query_start_loc=batch.query_start_loc,
        query_start_loc_cpu=batch.query_start_loc,
        seq_lens=batch.seq_lens,
        num_reqs=3,
        num_actual_tokens=drafted + 4,
        max_query_len=drafted + 1,
        max_seq_len=40,
        block_table_tensor=batch.block_table,
        slot_mapping=torch.arange(drafted + 4),
    )
    builder = PaluMetadataBuilder(SimpleNamespace(), ["layer"], SimpleNamespace(), torch.device("cpu"))
    outs = problem.empty_out(), problem.empty_out()
    for path, out in zip((TritonAttention, ReferenceAttention), outs, strict=True):
        attention = path(problem.shape, problem.rebuild)
        attention.attend(problem.query, problem.cache, builder.build(0, common).batch, out)
    torch.testing.assert_close(*outs)
