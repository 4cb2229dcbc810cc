import pytest

from palu_vllm.format.kv import KV, flattened, paired


def test_map_keeps_the_sides():
    assert KV(3, 4).map(lambda rank: 2 * rank) == KV(key=6, value=8)


def test_it_unpacks_in_the_order_of_its_fields():
    key, value = KV("k", "v")
    assert (key, value) == ("k", "v")


def test_pairs_come_back_from_a_flat_list():
    pairs = [KV(1, 2), KV(3, 4)]
    assert flattened(pairs) == [1, 2, 3, 4] and paired(flattened(pairs)) == pairs
    with pytest.raises(ValueError, match="shorter"):
        paired([1, 2, 3])
