"""The shipped model with packed latents: a trained model's tokens do not hang on rounding, so they must be equal."""

import pytest
from transformers import AutoTokenizer

from benchmarks.demo import MODEL
from benchmarks.perplexity import HELD_OUT
from offline_compress import compress
from tests.integration.test_half_rank import with_transformers
from tests.serving import engine, greedy

pytestmark = pytest.mark.serving


@pytest.mark.parametrize("tiers", [((1.0, 4),), ((0.5, 4), (0.5, 2))], ids=["4_bits", "tiers"])
def test_vllm_and_transformers_agree(tiers, tmp_path):
    compress(MODEL, tmp_path / "out", objective="svd", tiers=tiers)
    ids = AutoTokenizer.from_pretrained(MODEL).encode(HELD_OUT.read_text(encoding="utf-8"))
    requests = [[0, *ids[start : start + 48]] for start in range(1, 8001, 1000)]
    with engine(tmp_path / "out", attention_backend="palu") as llm:
        assert greedy(llm, requests, 12) == with_transformers(tmp_path / "out", requests)
