"""Whether a compressed checkpoint tokenizes and templates as its model does.

transformers chooses a tokenizer's class by model type and hub id, and a compressed checkpoint has others; so the two
are compared by what they give: tokens, text, and every chat template with and without tools.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

TEXTS = {
    "English": "It's the dog's 2nd  bone, isn't it? THEY'LL say: \"No!\" (see p. 1,234.56)",
    "code": "def f(x: int) -> int:\n\tif x != 0:\n        return x**2  # twice\r\n\n\n    return None;;\n{}[]=>->::&&",
    "European languages": "Größe naïve façade Łódź ñandú İstanbul œuvre Čeština Ελληνικά Привет, мир! Ünïcödé",
    "Asian languages": "你好，世界。日本語のテキスト、カタカナ。한국어 문장입니다. ภาษาไทย हिन्दी में पाठ",
    "right to left": "שלום עולם مرحبا بالعالم ١٢٣",
    "signs": "🙂👩‍👩‍👧‍👦 €£¥ ½ ² ∑∫√ →← “quoted” — … a\u0301 \u00a0\u2003\u200b\ufeff",
    "control characters": "a\x00b\x07c\x1b[0m\x7f\x85\u2028d\x0b\x0ce",
    "white space": "  two  three   \t\t\n \n\n   end  ",
    "numbers": "0 12 123 1234 12345678901234567890 3.14e-10 0xFF 1/2",
    "special tokens": "<s>a</s> <unk><pad><|endoftext|> <|im_start|>user\nb<|im_end|>[INST] c [/INST]<|eot_id|>",
    "nothing": "",
    "one space": " ",
}
QUESTION: dict[str, Any] = {"role": "user", "content": "What is the weather in Paris?"}
ANSWER: dict[str, Any] = {"role": "assistant", "content": "It rains.  Still."}
CALL: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [
    {"id": "call12345", "type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
]}  # fmt: skip
RESULT: dict[str, Any] = {"role": "tool", "tool_call_id": "call12345", "name": "weather", "content": '{"sky": "rain"}'}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "a question": [QUESTION],
    "a system prompt": [{"role": "system", "content": "Be brief.\n"}, QUESTION, ANSWER, QUESTION],
    "a tool call": [QUESTION, CALL, RESULT, ANSWER, QUESTION],
}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Of a city.", "parameters": PARAMETERS}}


def hub_name(directory: Path) -> str | None:
    """Returns the hub id of a model in the hub's own cache, None for any other directory."""
    directory = directory.resolve()
    if directory.parent.name != "snapshots":
        return None
    return directory.parents[1].name.removeprefix("models--").replace("--", "/")


def tokenizer_of(directory: Path, config: Mapping[str, Any] | None = None) -> Any:
    """Returns the tokenizer that transformers chooses for a local model, as it would by the hub id.

    ``config`` stands for a ``config.json`` that transformers does not know. No code of the model is run.
    """
    from transformers import AutoConfig, AutoTokenizer

    if config is None:
        read = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    else:
        decisive = {name: config[name] for name in ("tokenizer_class", "model_name") if name in config}
        read = AutoConfig.for_model(config["model_type"], **decisive)
    read._name_or_path = hub_name(directory) or str(directory)
    return AutoTokenizer.from_pretrained(directory, config=read, local_files_only=True, trust_remote_code=False)


def compare_tokenizers(ours: Any, theirs: Any) -> str:
    """Returns what was compared. Raises ValueError with the first difference, in one sentence."""
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "chat_template"):
        if getattr(ours, name, None) != getattr(theirs, name, None):
            raise ValueError(f"{name} is {getattr(ours, name, None)!r}, the model's {getattr(theirs, name, None)!r}.")
    for kind, text in TEXTS.items():
        _compare_text(kind, ours, theirs, text)
    rendered = 0
    for (what, found), (_, expected) in zip(_chats(ours), _chats(theirs), strict=True):
        if found != expected:
            raise ValueError(f"{what} gives {_short(found)}, with the model {_short(expected)}.")
        _compare_text(what, ours, theirs, expected)
        rendered += 1
    return f"{len(TEXTS)} texts and {rendered} renderings of {len(_templates(theirs))} chat templates alike"


def _compare_text(kind: str, ours: Any, theirs: Any, text: str) -> None:
    for special in (True, False):
        found, expected = (each(text, add_special_tokens=special)["input_ids"] for each in (ours, theirs))
        if found != expected:
            raise ValueError(f"{kind} is {len(found)} tokens ({_first(found, expected)}), the model's {len(expected)}.")
        if ours.decode(expected) != theirs.decode(expected):
            raise ValueError(f"{kind} comes back from its tokens as other text than the model's.")


def _first(found: list[int], expected: list[int]) -> str:
    place = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), len(expected))
    return f"token {place} is the first that differs"


def _templates(tokenizer: Any) -> list[str | None]:
    """The names of the chat templates, None for one without a name."""
    template = tokenizer.chat_template
    return list(template) if isinstance(template, dict) else [None] * (template is not None)


def _chats(tokenizer: Any) -> Iterator[tuple[str, str]]:
    """Every conversation in every template, with and without tools: what it is, and its text or its refusal."""
    for name in _templates(tokenizer):
        for conversation, messages in CONVERSATIONS.items():
            for tools in (None, [TOOL]):
                what = f"{conversation} {'with' if tools else 'without'} tools in chat template {name or 'default'}"
                yield what, _rendered(tokenizer, name, messages, tools)


def _rendered(tokenizer: Any, name: str | None, messages: list[dict[str, Any]], tools: list[Any] | None) -> str:
    from jinja2 import TemplateError

    messages = json.loads(json.dumps(messages))  # templates may change what they are given
    settings: dict[str, Any] = {"tools": tools, "add_generation_prompt": True, "tokenize": False}
    if name is not None:
        settings["chat_template"] = name
    try:
        return tokenizer.apply_chat_template(messages, **settings)
    except (TemplateError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
