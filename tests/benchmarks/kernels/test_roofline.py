"""The model of decode attention against bounds worked out by hand, and against what must hold for every shape."""

from dataclasses import replace

import pytest

from benchmarks.kernels.gpus import CHIPS, GPUS, gpu_of_device
from benchmarks.kernels.layers import MODELS, RECOMMENDED_LAYERS, Layer, sizes
from benchmarks.kernels.roofline import absorption_of, bounds, main, tiles_of, unpacked
from benchmarks.kernels.roofline_model import (
    Absorbing,
    Batch,
    Work,
    codec_work,
    decode_work,
    dense_work,
    latents_and_rebuild,
    unpacking,
)

H200 = GPUS["h200"]
BATCH = Batch(1, 65536)
# of the design's table: terms over tiles of tokens, and pairs that are rebuilt, for frequencies of 1e4 and of 5e5
LLAMA_2, LLAMA_3 = Absorbing(tile_tokens=64, fast=29, terms=4), Absorbing(tile_tokens=128, fast=24, terms=4)


def layer(model: str, rank_k: int, rank_v: int, bits: int = 16):
    return MODELS[model].layer(rank_k, rank_v).in_bits(bits)


def nanoseconds(work: Work, batch: Batch = BATCH) -> dict[str, float]:
    return {name: 1e9 * seconds / batch.tokens for name, seconds in work.seconds(H200).items()}


@pytest.mark.parametrize(
    ("model", "ranks", "bits", "dense", "memory", "rebuild", "speed_up"),
    [
        ("llama-2-7b", (128, 384), 16, 3.8, 1.9, 1.3, 2.0),
        ("llama-2-7b", (128, 384), 4, 3.8, 0.5, 1.3, 2.9),
        ("llama-3.1-8b", (256, 256), 16, 0.95, 0.48, 0.67, 1.4),
        ("llama-3.1-8b", (128, 384), 16, 0.95, 0.48, 0.33, 2.0),
        ("llama-3.1-8b", (128, 384), 4, 0.95, 0.13, 0.33, 2.9),
    ],
)
def test_bounds_of_the_full_rebuild(model, ranks, bits, dense, memory, rebuild, speed_up):
    shape = layer(model, *ranks, bits).shape
    whole, latent = dense_work(shape, BATCH), latents_and_rebuild(shape, BATCH)
    assert nanoseconds(whole)["memory"] == pytest.approx(dense, rel=0.01)
    assert nanoseconds(latent)["memory"] == pytest.approx(memory, rel=0.06)  # 4-bit latents have scales beside them
    assert nanoseconds(latent)["tensor cores"] == pytest.approx(rebuild, rel=0.03)
    assert whole.bound(H200)[1] / latent.bound(H200)[1] == pytest.approx(speed_up, abs=0.05)


@pytest.mark.parametrize(
    ("model", "ranks", "bits", "absorbing", "arithmetic", "speed_up"),
    [
        ("llama-2-7b", (128, 384), 16, LLAMA_2, 0.69, 2.0),
        ("llama-2-7b", (128, 384), 4, LLAMA_2, 0.69, 5.5),
        ("llama-3.1-8b", (256, 256), 16, LLAMA_3, 0.38, 2.0),
        ("llama-3.1-8b", (128, 384), 4, LLAMA_3, 0.19, 5.0),
    ],
)
def test_bounds_of_absorbed_pairs(model, ranks, bits, absorbing, arithmetic, speed_up):
    shape = layer(model, *ranks, bits).shape
    latent = latents_and_rebuild(shape, BATCH, absorbing)
    assert nanoseconds(latent)["tensor cores"] == pytest.approx(arithmetic, rel=0.03)
    assert dense_work(shape, BATCH).bound(H200)[1] / latent.bound(H200)[1] == pytest.approx(speed_up, abs=0.05)


def test_the_chosen_absorption_is_at_least_as_cheap_as_the_one_by_hand():
    for model, by_hand in (("llama-2-7b", LLAMA_2), ("llama-3.1-8b", LLAMA_3)):
        found = layer(model, 128, 384)
        works = [latents_and_rebuild(found.shape, BATCH, each) for each in (absorption_of(found), by_hand)]
        assert works[0].flops <= 1.001 * works[1].flops


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
@pytest.mark.parametrize("name", RECOMMENDED_LAYERS)
def test_tiles_cost_at_least_what_no_plan_avoids(name, gpu):
    layer = RECOMMENDED_LAYERS[name]
    whole, planned = tiles_of(layer, gpu)
    plans = [(whole, None)]
    if not layer.has_key_norm:
        assert planned.terms
        plans.append((planned, Absorbing(planned.tokens, planned.half, planned.terms)))
    for tiling, rebuilt in plans:
        least = latents_and_rebuild(layer.shape, BATCH, rebuilt)
        tiled = decode_work(layer.shape, BATCH, gpu, tiling)
        assert tiled.memory_bytes > least.memory_bytes and tiled.flops > least.flops
        assert tiled.l2_bytes > tiled.memory_bytes - least.memory_bytes + least.memory_bytes / 2


def test_every_tile_of_tokens_reads_k_up_again():
    layer = RECOMMENDED_LAYERS["llama_3_8b_128_384"]
    shape = layer.shape
    k_up, tiles, partials = 2 * shape.num_groups * 128 * 512, 65536 // 128, 2 * 66 * 32 * (384 + 2) * 4
    for tiling, pairs in zip(tiles_of(layer, H200), (64, 32), strict=True):
        by_hand = 65536 * shape.num_groups * (2 * 512 + 2 * pairs * 4) + tiles * k_up + partials
        assert decode_work(shape, BATCH, H200, tiling).l2_bytes == by_hand


@pytest.mark.parametrize(("latents", "fewer"), [({"key_latents": 2}, 512), ({"value_latents": 2}, 256)])
def test_groups_apart_cost_what_the_smaller_groups_cost_but_the_memory_of_the_larger(latents, fewer):
    """Groups of 4 and 8 KV heads, beside groups of 4 with latents as wide each: nothing is multiplied twice."""
    small = Layer(sizes(32, 8, 128, 4, 256, 512), theta=5e5)
    apart = Layer(sizes(32, 8, 128, 8, 256, 512), theta=5e5).with_latents(**latents)
    for tilings in zip(tiles_of(small, H200), tiles_of(apart, H200), strict=True):
        assert tilings[1] == replace(tilings[0], parts=2)
        equal, found = (
            decode_work(layer.shape, BATCH, H200, tiling) for layer, tiling in zip((small, apart), tilings, strict=True)
        )
        assert (found.flops, found.l2_bytes) == (equal.flops, equal.l2_bytes)
        assert equal.memory_bytes - found.memory_bytes == 65536 * fewer * 2


def test_operations_of_absorbed_tiles():
    """8 KV heads of 4 queries in 2 groups; 16 of 64 pairs rebuilt, 48 (padded 64) absorbed in 4 terms."""
    layer = RECOMMENDED_LAYERS["llama_3_8b_128_384"]
    planned = replace(tiles_of(layer, H200)[1], half=16, slow=64, terms=4)
    assert (planned.tokens, planned.rows, planned.values_per_program) == (128, 16, 384)
    rebuilt = 128 * (4 * 32) + 16 * (4 * 32)  # keys, then scores of 16 rows
    absorbed = 4 * (128 * 16 + 128 * 2 * 64 * 16 / 128)  # scores, then u once per tile
    by_hand = 2 * 65536 * 2 * (rebuilt + absorbed + 16 * 384)
    assert decode_work(layer.shape, BATCH, H200, planned).flops == by_hand


def test_smaller_tiles_read_k_up_more_often():
    layer = RECOMMENDED_LAYERS["llama_3_8b_256_256"]
    small = replace(H200, device=CHIPS["sm_89"])
    work = [decode_work(layer.shape, BATCH, gpu, tiles_of(layer, gpu)[0]) for gpu in (small, H200)]
    assert work[0].l2_bytes > work[1].l2_bytes


def test_requests_share_k_up_in_memory_and_nothing_else():
    layer = RECOMMENDED_LAYERS["llama_2_7b_128_384"]
    shape, tiling = layer.shape, tiles_of(layer, H200)[0]
    one, eight = (decode_work(shape, Batch(requests, 4096), H200, tiling) for requests in (1, 8))
    assert eight.flops == 8 * one.flops
    assert 7 * one.memory_bytes < eight.memory_bytes < 8 * one.memory_bytes
    assert latents_and_rebuild(shape, Batch(8, 4096)) == latents_and_rebuild(shape, Batch(1, 8 * 4096))


def test_the_table_says_what_bounds():
    found = {bound.plan: bound for bound in bounds(layer("llama-3.1-8b", 128, 384, 4), BATCH, H200)}
    assert found["dense bf16"].speed_up == 1 and found["dense bf16"].by == "memory"
    assert found["rebuild, at least"].by == "tensor cores"
    assert found["rebuild, in tiles"].seconds >= found["absorbed, in tiles"].seconds
    latents = [f"{plan}, {how}" for plan in ("rebuild", "absorbed") for how in ("at least", "in tiles")]
    assert list(found)[1:] == [*latents, "codec, at least"]


@pytest.mark.parametrize(
    ("per_number", "memory", "tensor", "issue", "by"),
    [
        (3, 0.2382, 0.0832, 0.1837, "memory"),
        (0, 0.2382, 0.0832, 0, "memory"),
        (7.8, 0.2382, 0.0832, 0.477, "instructions"),
    ],
)
def test_a_codec_by_hand(per_number, memory, tensor, issue, by):
    """1,024 bytes, 2 products of 32 heads with 512 codes, 2,048 codes of K and V per token of Llama 3.1 8B."""
    work = codec_work(layer("llama-3.1-8b", 128, 384).shape, BATCH, 1024, per_number)
    found = nanoseconds(work)
    assert found["memory"] == pytest.approx(memory, rel=0.001)
    assert found["tensor cores"] == pytest.approx(tensor, rel=0.002)
    assert found["instructions"] == pytest.approx(issue, rel=0.002)
    assert work.bound(H200)[0] == by


def test_instructions_are_those_of_the_design():
    """A tile of 64 tokens has 256 numbers per thread of 8 warps; 2,000 instructions take 2.3 us at 1.755 GHz."""
    one = replace(H200, device=replace(H200.device, multiprocessors=1), clock=1.755e9)
    tile = unpacking(64 * 1024, 2000 / 256)
    assert tile.instructions == 8 * 2000
    assert 1e6 * tile.seconds(one)["instructions"] == pytest.approx(2.3, rel=0.01)


def test_packed_latents_that_are_unpacked_twice_are_bound_by_it():
    """Ten instructions per number, every byte read twice: 45 us at 64K, where memory needs 8."""
    packed = layer("llama-3.1-8b", 128, 384, 4)
    work = unpacked(packed, BATCH, 2 * 10)
    assert 1e6 * work.seconds(replace(H200, clock=1.755e9))["instructions"] == pytest.approx(45, rel=0.01)
    assert unpacked(layer("llama-3.1-8b", 128, 384), BATCH, 20).instructions == 0


def test_work_adds_up():
    assert Work(1, 2, 3, 4) + Work(10, 20, 30, 40) == Work(11, 22, 33, 44)


def test_devices_are_found_by_the_name_that_cuda_gives():
    assert gpu_of_device("NVIDIA H100 80GB HBM3") is GPUS["h100"]
    assert gpu_of_device("NVIDIA A100-SXM4-80GB") is GPUS["a100"]
    assert gpu_of_device("NVIDIA H200") is GPUS["h200"]
    assert gpu_of_device("NVIDIA RTX A6000") is None


def test_command(capsys):
    main(["--gpu", "h200", "--shape", "llama-3.1-8b", "--ranks", "128/384", "--bits", "4"])
    printed = capsys.readouterr().out
    assert "a model" in printed and "absorbed, at least" in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpu", "tpu"], "unknown GPU 'tpu'; known: a100, b200, h100, h200, l40s"),
        (["--shape", "gpt-2"], "unknown shape 'gpt-2'; known: llama-2-7b, llama-3.1-8b, mistral-7b, qwen-2-7b"),
        (["--ranks", "128"], "got '128', expected ranks of K and V per group such as 128/384"),
        (["--ranks", "128/1000"], "got ranks 128/1000, expected 1 to 512"),
        (["--group-size", "3"], "got group size 3, expected a divisor of 8 KV heads"),
        (["--context", "0"], "got '0', expected a positive number"),
    ],
)
def test_refusals(arguments, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
