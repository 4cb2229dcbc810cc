"""How long greedy answers stay the dense model's, and whether needles are found: both in one pass per prompt.

Up to the first token that differs, the arm has been fed what the dense model said. So one pass over prompt and dense
answer gives the greedy tokens of the arm until then, without decoding.
"""

import random
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

NEEDLE = "\nThe special magic number for {key} is {value}. Remember it.\n"
QUESTION = "\nWhat is the special magic number for {key}? The special magic number for {key} is"
KEYS = ("amber", "birch", "copper", "delta", "ember", "falcon", "granite", "harbor")


@torch.inference_mode()
def agreed(model: torch.nn.Module, prompt: list[int], answer: list[int]) -> int:
    """How many leading tokens of ``answer`` are the model's own choice behind ``prompt``."""
    logits = model(torch.tensor([prompt + answer]), use_cache=False, logits_to_keep=len(answer) + 1).logits[0, :-1]
    same = logits.argmax(-1) == torch.tensor(answer)
    return int(same.long().cumprod(0).sum())


def agreement(model: torch.nn.Module, asked: list[list[int]], answers: list[list[int]]) -> dict[str, float]:
    """Mean length that agrees, of the mean length there is, and the share of answers that agree to their end."""
    lengths = [agreed(model, *pair) for pair in zip(asked, answers, strict=True)]
    whole = sum(length == len(answer) for length, answer in zip(lengths, answers, strict=True))
    return {
        "agreed_tokens": round(sum(lengths) / len(lengths), 2),
        "answer_tokens": round(sum(map(len, answers)) / len(answers), 2),
        "agreed_answers": round(whole / len(answers), 4),
    }


@dataclass(frozen=True)
class Needle:
    """A prompt that hides a number among text, and the tokens of the number."""

    prompt: list[int]
    answer: list[int]
    tokens: int
    depth: float


def needles(
    tokenizer: PreTrainedTokenizerBase, text: list[int], contexts: list[int], depths: list[float]
) -> list[Needle]:
    """One needle for each context and depth, in RULER's wording; seeded."""
    rng, found = random.Random(7), []
    for context in contexts:
        for depth in depths:
            key, value = rng.choice(KEYS), str(rng.randint(100_000, 999_999))
            needle = tokenizer.encode(NEEDLE.format(key=key, value=value), add_special_tokens=False)
            question = tokenizer.encode(QUESTION.format(key=key), add_special_tokens=False)
            answer = tokenizer.encode(f" {value}", add_special_tokens=False)
            begin = tokenizer.encode("")
            room = context - sum(map(len, (needle, question, answer, begin)))
            start = rng.randrange(max(1, len(text) - room))
            hay, place = text[start : start + room], int(depth * room)
            prompt = [*begin, *hay[:place], *needle, *hay[place:], *question]
            found.append(Needle(prompt, answer, context, depth))
    return found


def mastered(dense: torch.nn.Module, hidden: list[Needle]) -> list[Needle]:
    """Those that the dense model finds."""
    return [each for each in hidden if agreed(dense, each.prompt, each.answer) == len(each.answer)]


def retrieval(model: torch.nn.Module, hidden: list[Needle]) -> dict[str, Any]:
    """The share that is found, of those the dense model finds, by length."""
    by_length: dict[int, list[bool]] = {}
    for each in hidden:
        by_length.setdefault(each.tokens, []).append(agreed(model, each.prompt, each.answer) == len(each.answer))
    every = [one for several in by_length.values() for one in several]
    return {
        "needles": round(sum(every) / len(every), 4) if every else None,
        "needles_asked": len(every),
        "needles_by_length": {str(length): round(sum(one) / len(one), 4) for length, one in by_length.items()},
    }
