"""Does a model use its cache? ``python -m demo.check MODEL`` prints one JSON line.

Three numbers on held-out text (``demo/text/evaluation.txt``):
``perplexity`` of plain rows; ``returning_loss_ratio``, the loss of a passage's second occurrence over that
of its first; ``recall``, the share of facts repeated exactly when asked more than 1,000 tokens later.
"""

import argparse
import json
import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo.rows import Corpus, Fact, build_corpus, random_facts

TEXT = Path(__file__).parent / "text" / "evaluation.txt"
PASSAGE, GAP, ROWS = 128, 256, 24
DISTANCE, FACTS, RECALL_ROWS = 1000, 8, 16


@torch.inference_mode()
def token_losses(model: torch.nn.Module, ids: np.ndarray) -> torch.Tensor:
    """``[rows, length - 1]`` negative log-likelihoods in nats of ``ids [rows, length]``, whose first becomes BOS."""
    tokens = torch.from_numpy(ids).clone()
    tokens[:, 0] = model.config.bos_token_id
    logits = model(tokens).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")


def plain_perplexity(model: torch.nn.Module, corpus: Corpus, length: int = 1024) -> float:
    rows = len(corpus.stream) // length
    ids = corpus.stream[: rows * length].reshape(rows, length)
    losses = torch.cat([token_losses(model, part) for part in np.array_split(ids, math.ceil(rows / 4))])
    return math.exp(losses.mean().item())


def returning_loss(model: torch.nn.Module, corpus: Corpus, rng: np.random.Generator) -> tuple[float, float]:
    """Mean loss of a passage where it first stands and where it returns after fresh text."""
    rows = []
    for _ in range(ROWS):
        passage, fresh = corpus.passage(rng, PASSAGE), [corpus.passage(rng, GAP) for _ in range(2)]
        rows.append(np.concatenate([fresh[0], passage, fresh[1], passage]))
    losses = torch.cat([token_losses(model, part) for part in np.array_split(np.stack(rows), 6)])
    first = losses[:, GAP : GAP + PASSAGE - 1]
    return first.mean().item(), losses[:, -(PASSAGE - 1) :].mean().item()


@torch.no_grad()
def says(model: torch.nn.Module, corpus: Corpus, prefix: Any, fact: Fact) -> bool:
    """Whether greedy decoding continues the question with the fact's value, behind a cache, which stays as it is."""
    expected = corpus.encode(f" {fact.value}.")
    ids = torch.from_numpy(np.concatenate([corpus.encode("\n" + fact.question), expected]))[None]
    logits = model(ids, past_key_values=deepcopy(prefix)).logits
    guesses = logits[0, -len(expected) - 1 : -1].argmax(-1)
    return bool((guesses.numpy() == expected).all())


@torch.no_grad()
def recall(model: torch.nn.Module, corpus: Corpus, rng: np.random.Generator) -> float:
    hits = []
    for _ in range(RECALL_ROWS):
        facts = random_facts(corpus, rng, FACTS)
        stated = corpus.encode("".join(fact.statement for fact in facts))
        gap = corpus.passage(rng, DISTANCE)
        ids = torch.from_numpy(np.concatenate([[corpus.tokenizer.bos_token_id], stated, gap]))[None]
        prefix = model(ids, use_cache=True, logits_to_keep=1).past_key_values
        hits += [says(model, corpus, prefix, fact) for fact in facts[:4]]
    return sum(hits) / len(hits)


def check(model_dir: Path, text: Path = TEXT, seed: int = 0) -> dict[str, float]:
    """The three numbers of one checkpoint, in float32. The keys are those of the module docstring."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    corpus = build_corpus(tokenizer, text.read_text(encoding="utf-8").split("\n\n"), seed, min_count=5)
    rng = np.random.default_rng(seed)
    first, second = returning_loss(model, corpus, rng)
    return {
        "perplexity": round(plain_perplexity(model, corpus), 3),
        "first_loss": round(first, 3),
        "second_loss": round(second, 3),
        "returning_loss_ratio": round(second / first, 3),
        "recall": round(recall(model, corpus, rng), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, default=TEXT)
    options = parser.parse_args()
    print(json.dumps(check(options.model, options.text)))


if __name__ == "__main__":
    main()
