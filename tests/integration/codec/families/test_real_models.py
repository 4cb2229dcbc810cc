"""Real models, where ``PALU_MODELS`` is a folder that ``benchmarks.real_models`` wrote, with codecs in ``NAME-palu``.

Two implementations of a model round differently, and a number on the edge of two codes of 4 bits takes the other one.
So few tokens may differ, and those only where two are nearly as likely.
"""

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from tests.integration.codec.families.test_families import model_class, options
from tests.support.codecs.in_transformers import behind, with_codec
from tests.support.serving import attention_used, engine, greedy

FOLDER = Path(os.environ.get("PALU_MODELS", "models"))
CASES = {"smollm2": "LlamaForCausalLM", "gemma3": "Gemma3ForCausalLM"}
TOKENS, CONTEXTS = 24, (40, 200, 700)

pytestmark = [pytest.mark.serving, pytest.mark.slow]


@pytest.mark.parametrize("name", CASES)
def test_served_tokens_are_those_of_transformers(name):
    model, codec = FOLDER / name, FOLDER / f"{name}-palu" / "4x"
    if not codec.is_dir():
        pytest.skip(f"no {codec}")
    tokenizer = AutoTokenizer.from_pretrained(model)
    text = tokenizer.encode((FOLDER / "wiki_evaluation.txt").read_text(encoding="utf-8"), add_special_tokens=False)
    begin = tokenizer.encode("")
    requests = [[*begin, *text[1000 * number :][:context]] for number, context in enumerate(CONTEXTS)]
    with engine(model, **options(codec), max_model_len=1024) as llm:
        assert model_class(llm) == CASES[name]
        assert {backend for backend, _ in attention_used(llm)} == {"PALU"}
        answers = greedy(llm, requests, TOKENS)
        assert greedy(llm, requests, TOKENS) == answers, "from the prefix cache"
    with with_codec(model, codec) as same:
        gaps = torch.cat([behind(same, *pair) for pair in zip(requests, answers, strict=True)])
    print(f"{int((gaps > 0).sum())} of {len(gaps)} tokens differ, by {gaps.amax():.3f} at most")
    assert (gaps > 0).double().mean() <= 0.05 and gaps.amax() < 0.2
