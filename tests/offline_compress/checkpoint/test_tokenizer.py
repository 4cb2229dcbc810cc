"""What the compressor does where transformers would choose another tokenizer for its output."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from offline_compress.checkpoint.companions import copy_companions
from offline_compress.checkpoint.tokenizer import carry_tokenizer
from offline_compress.run.errors import CompressionError
from palu_vllm.huggingface.tokenizer_agreement import TEXTS, tokenizer_of
from tests.support.tokenizers import write_tokenizer

TEXT = " ".join(TEXTS.values())


def output_of(model: Path, out: Path) -> Path:
    """A directory as the compressor leaves it, as far as tokenizers go."""
    out.mkdir()
    copy_companions(model, out)
    config = json.loads((model / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"model_type": f"palu_{config['model_type']}"}))
    return out


def carry(model: Path, out: Path) -> str | None:
    return carry_tokenizer(model, json.loads((model / "config.json").read_text()), out)


def test_files_stay_as_they_are_where_they_do(tmp_path):
    model = write_tokenizer(tmp_path / "model", "metaspace", {"model_type": "llama"})
    out = output_of(model, tmp_path / "out")
    assert carry(model, out) == "12 texts and 6 renderings of 1 chat templates alike"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (model / name).read_bytes()


def test_a_hub_id_that_transformers_treats_specially(tmp_path):
    """DeepSeek's distilled Llamas say LlamaTokenizerFast and are read by another class, by their names alone."""
    snapshot = tmp_path / "models--deepseek-ai--DeepSeek-R1-Distill-Llama-8B" / "snapshots" / "abc"
    model = write_tokenizer(snapshot, "GPT-2", {"model_type": "llama"}, tokenizer_class="LlamaTokenizerFast")
    out = output_of(model, tmp_path / "out")
    theirs = tokenizer_of(model)(TEXT).input_ids
    assert AutoTokenizer.from_pretrained(out)(TEXT).input_ids != theirs
    assert carry(model, out) == "12 texts and 6 renderings of 1 chat templates alike"
    assert AutoTokenizer.from_pretrained(out)(TEXT).input_ids == theirs


def with_a_large_vocabulary(model: Path) -> Path:
    """Of above 100,000 tokens, from which on transformers looks whether a split is Mistral's."""
    file = model / "tokenizer.json"
    written = json.loads(file.read_text())
    vocabulary = written["model"]["vocab"]
    written["model"]["vocab"] |= {f"never {number}": len(vocabulary) + number for number in range(100_001)}
    file.write_text(json.dumps(written))
    return model


def test_the_mended_split_of_mistral(tmp_path):
    """transformers mends it where config.json says mistral and a version below 5, but OUT does not say mistral."""
    config = {"model_type": "mistral", "transformers_version": "4.50.0"}
    model = with_a_large_vocabulary(write_tokenizer(tmp_path / "model", "cl100k", config, fix_mistral_regex=True))
    out = output_of(model, tmp_path / "out")
    theirs = tokenizer_of(model)(TEXT).input_ids
    assert AutoTokenizer.from_pretrained(out)(TEXT).input_ids != theirs
    carry(model, out)
    assert AutoTokenizer.from_pretrained(out)(TEXT).input_ids == theirs


def test_a_model_without_a_tokenizer_has_none_to_compare(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    out = output_of(tmp_path / "model", tmp_path / "out")
    assert carry(tmp_path / "model", out) is None


def test_what_cannot_be_made_alike_is_refused(tmp_path):
    model = write_tokenizer(tmp_path / "model", "GPT-2", {"model_type": "llama"})
    out = output_of(model, tmp_path / "out")
    (out / "chat_template.jinja").write_text("another")
    with pytest.raises(CompressionError, match="^the output would not tokenize as the model does: chat_template is "):
        carry(model, out)
