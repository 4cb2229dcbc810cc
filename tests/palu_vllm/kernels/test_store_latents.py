"""The store kernel writes exactly the slots that it is told to write."""

import pytest
import torch

from palu_vllm.kernels.reference import store_latents as reference_store
from palu_vllm.kernels.store_latents import store_latents
from tests.palu_vllm.kernels.paged_batches import poisoned_cache
from tests.shapes import LAYERS

every_layer = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("block_size", [16, 48])
def test_slots_are_written_and_no_others(layer, dtype, block_size):
    shape = layer.shape
    slot_mapping = torch.randperm(5 * block_size)[:11]
    slot_mapping[[2, 7]] = -1
    latent_k = torch.randn(11, shape.num_groups, shape.rank_k).to(dtype)
    latent_v = torch.randn(11, shape.num_groups, shape.rank_v).to(dtype)
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


def test_strided_latents_are_refused():
    cache = torch.zeros(2, 3, 16, 9)
    with pytest.raises(ValueError, match="got latent_k with strides"):
        store_latents(torch.zeros(2, 4, 3).transpose(1, 2), torch.zeros(2, 3, 5), cache, torch.tensor([0, 1]))
