"""vLLM's CPU kernels cut fp8 numbers towards zero, see no future token, and that alone lowers perplexity."""

import json

import pytest
import torch

from benchmarks.experiments.fp8_cpu import KINDS, QUALITY, RESULT, kept_length, nearest, table, towards_zero

TOKENS, HEADS, HEAD_DIM, BLOCK = 70, 2, 32, 32  # three blocks, the last one not full


@pytest.mark.parametrize("dtype", KINDS.values(), ids=KINDS)
def test_a_cut_keeps_what_fp8_has_and_takes_the_next_smaller_size_of_the_rest(dtype):
    codes = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    sizes = codes[torch.isfinite(codes) & (codes >= 0)].unique()
    below, above = sizes[:-1], sizes[1:]
    between = below + 0.9 * (above - below)
    for sign in (1, -1):
        assert torch.equal(towards_zero(sign * sizes, dtype), sign * sizes)
        assert torch.equal(towards_zero(sign * between, dtype), sign * below)
        assert torch.equal(nearest(sign * between, dtype), sign * above)
    assert towards_zero(torch.tensor([1e6]), dtype).item() == torch.finfo(dtype).max


def test_a_cut_shortens_by_half_a_step():
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    assert kept_length(x, torch.float8_e4m3fn) == pytest.approx(0.9566, abs=1e-3)  # 8 steps per power of two
    assert kept_length(x, torch.float8_e5m2) == pytest.approx(0.9159, abs=1e-3)  # 4 steps


@pytest.fixture(scope="module")
def ops():
    from vllm import _custom_ops
    from vllm.platforms import current_platform

    current_platform.import_kernels()
    return _custom_ops


def stored(ops, kind: str, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """vLLM's paged caches ``[blocks, heads, block, head_dim]`` with all tokens in them; the rest is large."""
    blocks = -(-TOKENS // BLOCK)
    number = torch.uint8 if kind in KINDS else torch.float32
    caches = [torch.zeros(blocks, HEADS, BLOCK, HEAD_DIM, dtype=number) for _ in range(2)]
    for cache in caches:
        cache.fill_(0x70)  # a large number, in both kinds of fp8 too
    try:
        ops.cpu_attn_reshape_and_cache(key, value, *caches, torch.arange(TOKENS), "vec", kv_cache_dtype=kind)
    except RuntimeError as error:
        if kind in KINDS and "Unsupported CPU attention configuration" in str(error):
            pytest.skip("vLLM's fp8 cache on a CPU needs AVX-512 or AMX, which this one lacks")
        raise
    return caches[0], caches[1]


def read(kind: str, cache: torch.Tensor, transposed: bool) -> torch.Tensor:
    """What a cache holds of every token, float32 ``[tokens, heads, head_dim]``; blocks of keys are transposed."""
    numbers = cache.view(KINDS[kind]).float() if kind in KINDS else cache
    if transposed:
        numbers = numbers.reshape(-1, HEADS, HEAD_DIM, BLOCK).transpose(2, 3)
    return numbers.transpose(1, 2).reshape(-1, HEADS, HEAD_DIM)[:TOKENS]


def attended(ops, kind: str, query: torch.Tensor, caches: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Causal attention ``[tokens, heads, head_dim]`` of one request by vLLM's CPU kernel."""
    lengths = {
        "query_start_loc": torch.tensor([0, TOKENS], dtype=torch.int32),
        "seq_lens": torch.tensor([TOKENS], dtype=torch.int32),
        "causal": True,
        "dynamic_causal": None,
        "kv_cache_dtype": kind,
    }
    plan = ops.cpu_attn_get_scheduler_metadata(
        num_reqs=1, num_heads=HEADS, num_kv_heads=HEADS, head_dim=HEAD_DIM, dtype=query.dtype,
        sliding_window_size=-1, isa="vec", enable_kv_split=False, **lengths,
    )  # fmt: skip
    output = torch.empty_like(query)
    ops.cpu_attention_with_kv_cache(
        query=query, key_cache=caches[0], value_cache=caches[1], output=output, scale=HEAD_DIM**-0.5,
        alibi_slopes=None, sliding_window=-1, block_table=torch.arange(len(caches[0]), dtype=torch.int32)[None],
        softcap=0, scheduler_metadata=plan, s_aux=None, **lengths,
    )  # fmt: skip
    return output


@pytest.mark.parametrize("kind", ["auto", *KINDS])
def test_vllm_stores_cut_numbers_and_attends_to_them_without_the_future(ops, kind):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(TOKENS, HEADS, HEAD_DIM, generator=generator) for _ in range(3))
    caches = stored(ops, kind, key, value)
    if kind in KINDS:
        key, value = towards_zero(key, KINDS[kind]), towards_zero(value, KINDS[kind])
    assert torch.equal(read(kind, caches[0], transposed=True), key)
    assert torch.equal(read(kind, caches[1], transposed=False), value)
    heads_first = (x.transpose(0, 1) for x in (query, key, value))
    expected = torch.nn.functional.scaled_dot_product_attention(*heads_first, is_causal=True).transpose(0, 1)
    torch.testing.assert_close(attended(ops, kind, query, caches), expected, atol=1e-5, rtol=1e-5)


def test_the_cut_alone_is_what_vllm_measures():
    found = json.loads(RESULT.read_text())
    score = {(row["kind"], row["way"]): row["perplexity"] for row in found["rows"]}
    dense = found["dense"]["perplexity"]
    quality = {row["arm"]: row["perplexity"] for row in json.loads(QUALITY.read_text())["rows"]}
    assert dense == quality["dense"]
    for kind in KINDS:
        assert score[kind, "in vLLM"] == quality[f"{kind} in vLLM"]
        assert score[kind, "towards zero"] == pytest.approx(score[kind, "in vLLM"], abs=5e-4)
        assert score[kind, "shorter, not rounded"] < dense < score[kind, "nearest"]
        assert score[kind, "towards zero, lengthened"] > dense


def test_the_table_has_a_row_per_way():
    rows = [{"kind": kind, "way": "in vLLM", "perplexity": 26.0} for kind in KINDS]
    rows += [{"kind": kind, "way": "nearest", "perplexity": 27.2, "kl": 0.01} for kind in KINDS]
    assert table(rows, 27.0).splitlines() == [
        "| stored | fp8_e4m3 | fp8_e5m2 |",
        "|---|---|---|",
        "| dense | 27.0000 | 27.0000 |",
        "| in vLLM | 26.0000 | 26.0000 |",
        "| nearest | 27.2000 (0.0100) | 27.2000 (0.0100) |",
    ]
