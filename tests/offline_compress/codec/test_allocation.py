"""Bits go where they save most, within the budget and in few formats."""

import pytest
import torch

from offline_compress.codec.allocation import Layer, allocate, menu
from offline_compress.codec.basis import Basis, loss
from offline_compress.run.errors import CompressionError
from palu_vllm.format.kv import KV

WIDTH = 32


def layer(seed, size=1.0, width=WIDTH, groups=2):
    generator = torch.Generator().manual_seed(seed)

    def side(stretch):
        variances = (
            stretch * torch.rand(groups, width, generator=generator, dtype=torch.float64).sort(descending=True)[0]
        )
        return Basis(variances**2, torch.eye(width, dtype=torch.float64).expand(groups, -1, -1))

    return Layer(KV(side(size), side(3 * size)))


LAYERS = [layer(seed, 2.0**seed) for seed in range(6)]
DENSE = 6 * 2 * 2 * WIDTH * 2  # bytes of six layers, two groups, K and V


def used(allocation):
    return sum(2 * slot.bytes for slot in allocation.slots)


def test_a_menu_has_every_way_of_falling_bits():
    found = menu(32)
    assert len(found.formats) == 70 and all(form.rank == 32 for form in found.formats)
    assert all(
        sorted((tier.bits for tier in form.tiers), reverse=True) == [t.bits for t in form.tiers]
        for form in found.formats
    )
    assert len(menu(192).formats) == 1820 and len(menu(512).formats) == 4845


def test_losses_of_a_menu_are_those_of_its_formats():
    side = Basis(torch.rand(2, WIDTH, dtype=torch.float64).sort(descending=True)[0], torch.empty(0))
    for form, cost in zip(menu(WIDTH).formats, menu(WIDTH).losses(side), strict=True):
        assert cost == pytest.approx(loss(side, form))


@pytest.mark.parametrize("compression", [2.2, 3.0, 4.0, 5.0])
@pytest.mark.parametrize("formats", [1, 2, 4, 12])
def test_keeps_to_the_budget_and_the_number_of_formats(compression, formats):
    found = allocate(LAYERS, DENSE / compression, formats)
    assert 0.88 * DENSE / compression < used(found) <= DENSE / compression or formats < 3
    assert used(found) <= DENSE / compression and len(set(found.slots)) <= formats
    assert found.loss == pytest.approx(sum(each.loss(slot) for each, slot in zip(LAYERS, found.slots, strict=True)))


def test_more_bytes_and_more_formats_lose_less():
    by_bytes = [allocate(LAYERS, DENSE / compression, 4).loss for compression in (6.0, 5.0, 4.0, 3.0, 2.0)]
    assert all(more < less for less, more in zip(by_bytes, by_bytes[1:], strict=False))
    by_formats = [allocate(LAYERS, DENSE / 4, count).loss for count in (1, 2, 4, 12)]
    assert by_formats[0] > by_formats[-1] and by_formats[2] < 1.6 * by_formats[-1]


def test_a_layer_that_matters_more_gets_more():
    found = allocate(LAYERS, DENSE / 4, 12)
    assert found.slots[-1].bytes > found.slots[0].bytes
    assert all(slot.value.bytes >= slot.key.bytes for slot in found.slots)


def test_layers_of_other_widths_have_formats_of_their_own():
    found = allocate([layer(0), layer(1, width=64)], 2 * (32 + 64) * 2, 1)
    assert [slot.key.rank for slot in found.slots] == [32, 64]


def test_a_budget_below_the_smallest_codes_is_refused():
    with pytest.raises(CompressionError, match="2 bits per number take"):
        allocate(LAYERS, DENSE / 9, 4)
