"""``--runner pooling`` with a codec: embeddings and scores are those of transformers with it in its attention."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from tests.integration.codec.families.test_families import options
from tests.support.codecs.in_transformers import with_codec
from tests.support.codecs.models import write_codec
from tests.support.serving import attention_used, engine, prompts
from tests.support.tiny_models import SIZES, byte_tokenizer

pytestmark = pytest.mark.serving

REQUESTS = prompts(6, 130, 45)


def test_embeddings_are_those_of_transformers(dense, tmp_path, monkeypatch):
    monkeypatch.setenv("PALU_KERNELS", "torch")
    codec = write_codec(tmp_path / "codec", dense())
    pooled = {"runner": "pooling", "convert": "embed", "max_num_batched_tokens": 48}
    with engine(dense(), **options(codec), **pooled) as llm:
        assert {name for name, _ in attention_used(llm)} == {"PALU"}
        outputs = llm.embed([{"prompt_token_ids": ids} for ids in REQUESTS], use_tqdm=False)
    with with_codec(dense(), codec) as model, torch.no_grad():
        for output, ids in zip(outputs, REQUESTS, strict=True):
            last = model.model(torch.tensor([ids]), use_cache=False).last_hidden_state[0, -1]
            torch.testing.assert_close(torch.tensor(output.outputs.embedding), last / last.norm(), atol=1e-5, rtol=0)


@pytest.fixture
def classifier(tmp_path):
    """A tiny Llama that tells three kinds of text apart."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **(SIZES | {"pad_token_id": 0}), num_labels=3, initializer_range=0.1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "model")
    byte_tokenizer(SIZES["vocab_size"]).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_classes_are_those_of_transformers(classifier, tmp_path, monkeypatch):
    monkeypatch.setenv("PALU_KERNELS", "torch")
    codec = write_codec(tmp_path / "codec", classifier)
    with engine(classifier, **options(codec), runner="pooling") as llm:
        assert {name for name, _ in attention_used(llm)} == {"PALU"}
        outputs = llm.classify([{"prompt_token_ids": ids} for ids in REQUESTS], use_tqdm=False)
    with with_codec(classifier, codec, AutoModelForSequenceClassification) as model, torch.no_grad():
        for output, ids in zip(outputs, REQUESTS, strict=True):
            expected = model(torch.tensor([ids]), use_cache=False).logits[0].softmax(-1)
            torch.testing.assert_close(torch.tensor(output.outputs.probs), expected, atol=1e-5, rtol=0)
