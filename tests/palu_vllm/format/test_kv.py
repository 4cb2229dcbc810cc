from palu_vllm.format.kv import KV


def test_map_keeps_the_sides():
    assert KV(3, 4).map(lambda rank: 2 * rank) == KV(key=6, value=8)


def test_it_unpacks_in_the_order_of_its_fields():
    key, value = KV("k", "v")
    assert (key, value) == ("k", "v")
