"""The store kernel writes exactly the slots that it is told to write."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palu_vllm.format.latent_format import BITS, TIER_STEP, LatentFormat, SlotFormat, Tier, cut_into_scale_groups
from palu_vllm.kernels.gpu.arguments import packed_format
from palu_vllm.kernels.gpu.store.latents import store_latents, store_latents_kernel
from palu_vllm.kernels.reference import store_latents as reference_store
from tests.palu_vllm.kernels.paged_batches import poisoned_cache
from tests.support.shapes import LAYERS, PACKED_LAYERS
from tests.support.speed.cases import diagonal, examples

DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}
BAD = {str(number): number for number in (float("nan"), float("inf"), float("-inf"), 1e30, -1e6, 1e-9)}


@diagonal(layer=LAYERS, dtype=DTYPES, block_size={"16": 16, "48": 48})
def test_slots_are_written_and_no_others(layer, dtype, block_size):
    shape = layer.shape
    slot_mapping = torch.randperm(5 * block_size)[:11]
    slot_mapping[[2, 7]] = -1
    latent_k = torch.randn(11, shape.num_groups, shape.numbers_k).to(dtype)
    latent_v = torch.randn(11, shape.num_groups, shape.numbers_v).to(dtype)
    actual, expected = (poisoned_cache(shape, 5, block_size, dtype) for _ in range(2))

    store_latents(latent_k, latent_v, actual, slot_mapping)
    reference_store(latent_k, latent_v, expected, slot_mapping)

    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    written = ~actual.isnan().all(dim=-1)
    assert written.sum() == 9 * shape.num_groups


def test_latents_may_be_slices_of_one_projection_with_rows_of_padding():
    shape = LAYERS["two_groups_bias_head_dim_80"].shape
    projected = torch.randn(9, shape.num_groups, shape.rank_k + shape.rank_v)
    latent_k, latent_v = projected.split((shape.rank_k, shape.rank_v), dim=-1)
    cache = torch.full((2, shape.num_groups, 16, shape.rank_k + shape.rank_v), float("nan"))

    store_latents(latent_k, latent_v, cache, torch.tensor([3, 16, 31, 0]))

    assert torch.equal(cache[0, :, 3], projected[0])
    assert torch.equal(cache[1, :, [0, 15]].transpose(0, 1), projected[1:3])
    assert torch.equal(cache[0, :, 0], projected[3])
    assert (~cache.isnan().any(dim=-1)).sum() == 4 * shape.num_groups


def test_no_tokens_write_nothing():
    shape = LAYERS["per_head_odd_ranks"].shape
    cache = poisoned_cache(shape, 2, 16, torch.float32)
    latent_k, latent_v = (torch.empty(0, shape.num_groups, rank) for rank in (shape.rank_k, shape.rank_v))
    store_latents(latent_k, latent_v, cache, torch.empty(0, dtype=torch.int64))
    assert cache.isnan().all()


@pytest.mark.parametrize("store", [store_latents, reference_store])
def test_latents_that_do_not_fill_a_slot_are_refused(store):
    cache = torch.zeros(2, 3, 16, 10)
    slot_mapping = torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"got cache \[2, 3, 16, 10\], expected \[num_blocks, 3, block_size, 9\]"):
        store(torch.zeros(2, 3, 4), torch.zeros(2, 3, 5), cache, slot_mapping)
    with pytest.raises(ValueError, match=r"got latent_v \[1, 3, 6\], expected at least 2 tokens of 3 groups"):
        store(torch.zeros(2, 3, 4), torch.zeros(1, 3, 6), cache, slot_mapping)


@pytest.mark.parametrize("store", [store_latents, reference_store])
def test_a_packed_cache_that_is_not_aligned_is_refused(store):
    slot = SlotFormat(LatentFormat((Tier(5, 8),), "float32"), LatentFormat((Tier(9, 4),), "float32"))
    cache = torch.zeros(2, 3, 16, slot.bytes + 1, dtype=torch.uint8)[..., 1:]
    with pytest.raises(ValueError, match="got a packed cache with offset and strides .* expected multiples of 4"):
        store(torch.zeros(2, 3, 5), torch.zeros(2, 3, 9), cache, torch.tensor([0, 1]), slot)


def test_strided_latents_are_refused():
    cache = torch.zeros(2, 3, 16, 9)
    with pytest.raises(ValueError, match="got latent_k with strides"):
        store_latents(torch.zeros(2, 4, 3).transpose(1, 2), torch.zeros(2, 3, 5), cache, torch.tensor([0, 1]))


def assert_packs_as_specified(latent_k: torch.Tensor, latent_v: torch.Tensor, slot: SlotFormat) -> None:
    """In a cache whose other bytes are all 255, and stay so; one token is padding."""
    tokens, groups, _ = latent_k.shape
    slot_mapping = torch.randperm(3 * 16)[:tokens]
    slot_mapping[0] = -1
    counts = latent_k.shape[-1] // slot.key.rank, latent_v.shape[-1] // slot.value.rank
    width = counts[0] * slot.key.bytes + counts[1] * slot.value.bytes
    actual, expected = (torch.full((3, 16, groups, width), 255, dtype=torch.uint8) for _ in range(2))
    store_latents(latent_k, latent_v, actual.transpose(1, 2), slot_mapping, slot)
    reference_store(latent_k, latent_v, expected.transpose(1, 2), slot_mapping, slot)
    assert torch.equal(actual, expected)
    assert ((actual != 255).any(dim=-1).sum()) == (tokens - 1) * groups


def random_latents(
    ranks: tuple[int, int], groups: int, dtype: torch.dtype, tokens: int = 7
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of very different sizes and offsets."""
    magnitude, offset = 10 ** torch.randn(2, tokens, groups, 1)
    return tuple((magnitude * torch.randn(tokens, groups, rank) + offset).to(dtype) for rank in ranks)


@diagonal(layer=PACKED_LAYERS, dtype=DTYPES)
def test_bytes_are_those_of_the_specification(layer, dtype):
    shape = layer.shape
    assert_packs_as_specified(*random_latents((shape.numbers_k, shape.numbers_v), shape.num_groups, dtype), shape.slot)


@diagonal(layer=PACKED_LAYERS, bad=BAD)
def test_rows_that_do_not_fit_are_those_of_the_specification(layer, bad):
    shape = layer.shape
    latent_k, latent_v = random_latents((shape.numbers_k, shape.numbers_v), shape.num_groups, torch.float32)
    latent_k[1, 0, 5] = bad
    latent_v[2, 0, -1] = bad
    latent_k[3] = bad
    latent_v[4] = 3.0
    assert_packs_as_specified(latent_k, latent_v, shape.slot)


@st.composite
def formats(draw) -> LatentFormat:
    """Any number of tiers, none wider than the one before; all but the last are whole tiles of numbers."""
    bits = sorted(draw(st.lists(st.sampled_from(BITS), min_size=1, max_size=4)), reverse=True)
    sizes = [TIER_STEP * draw(st.integers(1, 5)) for _ in bits[1:]] + [draw(st.integers(1, 100))]
    tiers = tuple(Tier(size, each) for size, each in zip(sizes, bits, strict=True))
    return LatentFormat(
        cut_into_scale_groups(tiers, draw(st.sampled_from([0, TIER_STEP, 32, 48]))),
        draw(st.sampled_from(["float32", "float16", "bfloat16"])),
        symmetric=draw(st.booleans()),
        clip=draw(st.just(1.0) | st.floats(0.01, 1)),
    )


@settings(max_examples=examples(12, 40), derandomize=True)
@given(
    key=formats(),
    value=formats(),
    seed=st.integers(0, 2**32),
    bad=st.sampled_from([0.0, -0.0, float("nan"), float("inf"), float("-inf"), 7e4, -6e4, 3e38, 1e-7]),
)
def test_random_tiers_are_packed_as_specified(key, value, seed, bad):
    torch.manual_seed(seed)
    latents = random_latents((key.rank, value.rank), 1, getattr(torch, key.dtype), tokens=4)
    latents[0][1, 0, 0] = bad
    latents[1][2, 0, -1] = bad
    latents[1][3, 0] = latents[1][3, 0].abs()
    assert_packs_as_specified(*latents, SlotFormat(key, replace(value, dtype=key.dtype)))


def test_other_clip_ratios_need_no_other_kernel():
    """Constants are what a kernel is compiled for: the ratio is none of them."""
    form = LatentFormat((Tier(16, 4),) * 2, "float32")
    assert packed_format(replace(form, clip=0.7)) == packed_format(form)
    annotations = store_latents_kernel.fn.__annotations__
    assert "FORMAT_K" in annotations and not {"clip_k", "clip_v"} & annotations.keys()
