"""The shipped model with packed latents: a trained model's tokens do not hang on rounding, so they must be equal."""

import pytest
from transformers import AutoTokenizer

from benchmarks.common.shipped import HELD_OUT, MODEL
from offline_compress import compress
from tests.integration.checkpoints.test_half_rank import with_transformers
from tests.integration.checkpoints.test_packed import capacity
from tests.support.serving import engine, greedy
from tests.support.speed.cases import few

pytestmark = pytest.mark.serving


@pytest.mark.parametrize("tiers", few({"4_bits": ((1.0, 4),), "tiers": ((0.5, 4), (0.5, 2))}, "tiers"))
def test_vllm_and_transformers_agree(tiers, tmp_path):
    compress(MODEL, tmp_path / "out", objective="svd", tiers=tiers)
    ids = AutoTokenizer.from_pretrained(MODEL).encode(HELD_OUT.read_text(encoding="utf-8"))
    requests = [[0, *ids[start : start + 48]] for start in range(1, 8001, 1000)]
    with engine(tmp_path / "out", attention_backend="palu") as llm:
        assert greedy(llm, requests, 12) == with_transformers(tmp_path / "out", requests)


@pytest.fixture(scope="module")
def dense_capacity() -> int:
    with engine(MODEL, dtype="float16", block_size=32, num_gpu_blocks_override=None) as llm:
        return capacity(llm)


@pytest.mark.slow
@pytest.mark.parametrize("tiers", ["1:8", "1:4", "1:3", "1:2", "0.25:8,0.75:3"])
def test_capacity_grows_as_the_report_says(tiers, dense_capacity, tmp_path):
    fractions = tuple((float(share), int(bits)) for share, bits in (tier.split(":") for tier in tiers.split(",")))
    report = compress(MODEL, tmp_path / "out", objective="svd", tiers=fractions)
    with engine(tmp_path / "out", attention_backend="palu", dtype="float16", num_gpu_blocks_override=None) as llm:
        times = report["dense_bytes_per_token"] / report["bytes_per_token"]
        print(f"{tiers}: {dense_capacity} to {capacity(llm)} tokens, {capacity(llm) / dense_capacity:.3f}; {times:.3f}")
        assert capacity(llm) / dense_capacity == pytest.approx(times, rel=0.02)
