"""A compressed checkpoint tokenizes as its model, whatever class transformers chooses for the model's type."""

import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from palu_vllm.families import FAMILIES, palu_type
from palu_vllm.huggingface.tokenizer_agreement import TEXTS, compare_tokenizers, hub_name, tokenizer_of
from tests.support.tokenizers import KINDS, TOOLS_TEMPLATE, write_tokenizer

CLASSES = (None, "LlamaTokenizerFast", "GPT2Tokenizer", "Qwen2Tokenizer", "PreTrainedTokenizerFast")
TEXT = " ".join(TEXTS.values())


def both(tmp_path: Path, family: str, kind: str, **settings) -> tuple[Path, Path]:
    """A compressed and a dense directory with the same tokenizer files."""
    types = {"ours": palu_type(family), "theirs": family}
    made = [
        write_tokenizer(tmp_path / name, kind, {"model_type": kind_of}, **settings) for name, kind_of in types.items()
    ]
    return made[0], made[1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", CLASSES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_family_with_every_class_and_kind(tmp_path, family, name, kind):
    ours, theirs = both(tmp_path, family, kind, **({"tokenizer_class": name} if name else {}))
    alike = compare_tokenizers(tokenizer_of(ours), tokenizer_of(theirs))
    assert alike == "12 texts and 6 renderings of 1 chat templates alike"
    assert AutoTokenizer.from_pretrained(ours)(TEXT).input_ids == AutoTokenizer.from_pretrained(theirs)(TEXT).input_ids


def test_the_class_that_transformers_knows_to_be_wrong_is_not_obeyed(tmp_path):
    """The smallest input of the report: it once gave tokens without spaces, half as many again."""
    ours, _ = both(tmp_path, "qwen2", "GPT-2", tokenizer_class="LlamaTokenizerFast")
    tokenizer = AutoTokenizer.from_pretrained(ours)
    assert type(tokenizer).__name__ == "Qwen2Tokenizer"
    assert tokenizer.decode(tokenizer("two words").input_ids) == "two words"


def other(tmp_path: Path, **changes) -> str:
    """The sentence for a dense model whose settings differ by ``changes``."""
    ours, theirs = both(tmp_path, "llama", "GPT-2")
    kind = changes.pop("kind", "GPT-2")
    write_tokenizer(theirs, kind, {"model_type": "llama"}, **changes)
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the sentence is looked at by the caller
        compare_tokenizers(tokenizer_of(ours), tokenizer_of(theirs))
    return str(refused.value)


def test_other_tokens_are_named(tmp_path):
    assert other(tmp_path, kind="cl100k").startswith("English is ")


def test_another_special_token_is_named(tmp_path):
    assert other(tmp_path, eos_token="<s>") == "eos_token_id is 1, the model's 0."


def test_another_template_is_named(tmp_path):
    assert other(tmp_path, chat_template="{{ messages[0].content }}").startswith("chat_template is ")


@pytest.mark.parametrize("place", ["additional_chat_templates", "tokenizer_config.json"])
def test_several_templates_are_all_rendered(tmp_path, place):
    ours, theirs = both(tmp_path, "llama", "GPT-2")
    for directory in (ours, theirs):
        if place == "tokenizer_config.json":
            named = [{"name": name, "template": TOOLS_TEMPLATE + name} for name in ("default", "tool_use")]
            write_tokenizer(directory, "GPT-2", {"model_type": "llama"}, chat_template=named)
            continue
        (directory / place).mkdir()
        (directory / place / "tool_use.jinja").write_text(TOOLS_TEMPLATE + "tool_use")
        (directory / "chat_template.jinja").write_text(TOOLS_TEMPLATE)
    alike = compare_tokenizers(tokenizer_of(ours), tokenizer_of(theirs))
    assert alike == "12 texts and 12 renderings of 2 chat templates alike"
    if place == "additional_chat_templates":
        shutil.rmtree(ours / place)
        with pytest.raises(ValueError, match="^chat_template is "):
            compare_tokenizers(tokenizer_of(ours), tokenizer_of(theirs))


def test_a_template_that_refuses_a_conversation_refuses_in_both(tmp_path):
    template = "{{ raise_exception('no tools') if tools else messages[0].content }}"
    ours, theirs = both(tmp_path, "llama", "GPT-2", chat_template=template)
    assert "6 renderings" in compare_tokenizers(tokenizer_of(ours), tokenizer_of(theirs))


def test_names_of_the_hub(tmp_path):
    snapshot = tmp_path / "models--org--a-model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    assert hub_name(snapshot) == "org/a-model" and hub_name(tmp_path) is None
