import pytest
import torch
from vllm.v1.attention.backend import AttentionType

from palu_vllm.attention_backend.impl import PaluImpl
from palu_vllm.attention_backend.metadata import PaluMetadata
from palu_vllm.format.shape import LayerShape
from palu_vllm.kernels.cpu.attention import TorchAttention
from palu_vllm.kernels.interface import KeyRebuild, PagedBatch

SHAPE = LayerShape(4, 2, 8, group_size_k=2, group_size_v=2, rank_k=6, rank_v=5, softmax_scale=0.35)
ARGUMENTS = {
    "num_heads": 4,
    "head_size": 6,
    "scale": 0.35,
    "num_kv_heads": 1,
    "alibi_slopes": None,
    "sliding_window": None,
    "kv_cache_dtype": "auto",
    "logits_soft_cap": None,
    "attn_type": AttentionType.DECODER,
    "kv_sharing_target_layer_name": None,
}


def build(rebuild: KeyRebuild | None = None, **changes) -> PaluImpl:
    rebuild = rebuild or KeyRebuild(torch.randn(1, 6, 16), None, torch.randn(32, 8))
    return PaluImpl(**ARGUMENTS | changes, shape=SHAPE, rebuild=rebuild)


@pytest.mark.parametrize(
    ("change", "feature"),
    [
        ({"alibi_slopes": [0.5]}, "ALiBi"),
        ({"logits_soft_cap": 30.0}, "a soft cap of the logits"),
        ({"attn_type": AttentionType.ENCODER_ONLY}, "encoder_only attention"),
    ],
)
def test_features_that_are_refused(change, feature):
    with pytest.raises(ValueError, match=f"PALU does not support {feature}"):
        build(**change)


def test_facts_of_a_layer_stay_on_its_instance():
    wide, narrow = build(sliding_window=None), build(sliding_window=4)
    assert (wide.shape.sliding_window, narrow.shape.sliding_window) == (None, 4)


def test_rows_of_padding_are_left_alone():
    impl = build()
    impl.process_weights_after_loading(torch.float32)
    assert isinstance(impl.attention, TorchAttention)
    cache = torch.full((3, 1, 16, 11), float("nan"))
    slots = torch.tensor([16, 17, -1])
    impl.do_kv_cache_update(None, torch.randn(3, 1, 6), torch.randn(3, 1, 5), cache, slots)
    table, lengths = torch.tensor([[1]], dtype=torch.int32), torch.tensor([2], dtype=torch.int32)
    batch = PagedBatch(table, lengths, torch.tensor([0, 2], dtype=torch.int32), 2, 2)
    output = torch.full((3, 4, 5), 7.0)
    impl.forward(None, torch.randn(3, 4, 8), None, None, cache, PaluMetadata(2, batch), output)
    assert torch.isfinite(output[:2]).all() and (output[2] == 7.0).all()


def test_a_layer_that_shares_attends_to_what_its_source_stored():
    source = build()
    reader = build(source.rebuild, kv_sharing_target_layer_name="model.layers.0")
    for impl in (source, reader):
        impl.process_weights_after_loading(torch.float32)
    cache, lengths = torch.zeros(3, 1, 16, 11), torch.tensor([2], dtype=torch.int32)
    source.do_kv_cache_update(None, torch.randn(2, 1, 6), torch.randn(2, 1, 5), cache, torch.tensor([16, 17]))
    starts = torch.tensor([0, 2], dtype=torch.int32)
    metadata = PaluMetadata(2, PagedBatch(torch.tensor([[1]], dtype=torch.int32), lengths, starts, 2, 2))
    query, before = torch.randn(2, 4, 8), cache.clone()
    nothing = torch.empty(0)
    first, second = (
        impl.forward(None, query, nothing, nothing, cache, metadata, torch.zeros(2, 4, 5)) for impl in (source, reader)
    )
    assert torch.equal(first, second) and first.abs().min() > 0
    assert torch.equal(cache, before)


def test_before_there_is_a_cache_the_output_is_zero():
    output = torch.full((3, 4, 5), float("nan"))
    build().forward(None, torch.randn(3, 4, 8), None, None, torch.tensor([]), None, output)
    assert (output == 0).all()
