"""Trains the shipped model: ``python -m demo.train OUT`` (needs the Debian packages of demo/text.py).

Writes an ordinary Llama checkpoint in float16, the tokenizer and ``training.json``. About an hour and a half
on two cores; the text splits go to ``demo/text/``.
"""

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo.check import check
from demo.circuit import plant_induction
from demo.rows import Corpus, batch, build_corpus
from demo.text import load_splits

SPECIAL = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
VOCABULARY = 2048


@dataclass(frozen=True)
class Phase:
    """A stretch of training: row length in tokens, rows per step, steps, share of each row builder."""

    length: int
    rows: int
    steps: int
    plain: float
    returning: float
    recall: float

    @property
    def mix(self) -> dict[str, float]:
        return {"plain": self.plain, "returning": self.returning, "recall": self.recall}


PHASES = (
    Phase(length=256, rows=8, steps=650, plain=0.4, returning=0.3, recall=0.3),
    Phase(length=512, rows=4, steps=250, plain=0.4, returning=0.3, recall=0.3),
    Phase(length=2048, rows=1, steps=560, plain=0.4, returning=0.25, recall=0.35),
    Phase(length=4096, rows=1, steps=20, plain=0.4, returning=0.25, recall=0.35),
)
PEAK_LEARNING_RATE = 1e-3


def train_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    words = Regex(r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(documents, trainer)
    begin = (SPECIAL[0], tokenizer.token_to_id(SPECIAL[0]))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{SPECIAL[0]} $A", special_tokens=[begin])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=SPECIAL[0], eos_token=SPECIAL[0], chat_template=CHAT_TEMPLATE
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=704, num_hidden_layers=6,
        num_attention_heads=8, num_key_value_heads=4, head_dim=64, max_position_embeddings=4096,
        rms_norm_eps=1e-5, tie_word_embeddings=True, initializer_range=0.06,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    plant_induction(model, tokenizer.bos_token_id, torch.Generator().manual_seed(seed))
    return model


def learning_rate(step: int, total: int) -> float:
    warmup = 100
    if step < warmup:
        return PEAK_LEARNING_RATE * (step + 1) / warmup
    return PEAK_LEARNING_RATE * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))))


def build_optimizer(model: LlamaForCausalLM) -> torch.optim.AdamW:
    """AdamW; what was planted learns a tenth as fast, or the first steps would wipe it out."""
    planted = ("embed_tokens", "layers.0.self_attn", "layers.1.self_attn")
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        pace = 0.1 if any(part in name for part in planted) else 1.0
        decay = 0.1 if parameter.ndim > 1 and pace == 1.0 else 0.0
        groups.setdefault((pace, decay), []).append(parameter)
    listed = [{"params": p, "pace": pace, "weight_decay": decay} for (pace, decay), p in groups.items()]
    return torch.optim.AdamW(listed, lr=PEAK_LEARNING_RATE, betas=(0.9, 0.95), fused=True)


def train(model: LlamaForCausalLM, corpus: Corpus, phases: tuple[Phase, ...], seed: int, log: Path) -> None:
    """Runs every phase; one JSON line per 25 steps goes to ``log``."""
    rng, optimizer = np.random.default_rng(seed), build_optimizer(model)
    step, total, started = 0, sum(p.steps for p in phases), time.time()
    model.train()
    for phase in phases:
        for _ in range(phase.steps):
            ids = torch.from_numpy(batch(corpus, rng, phase.rows, phase.length, phase.mix))
            for group in optimizer.param_groups:
                group["lr"] = group["pace"] * learning_rate(step, total)
            loss = model(ids, labels=ids, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            if step % 25 == 0:
                line = {"step": step, "of": total, "length": phase.length, "loss": round(loss.item(), 4),
                        "seconds": round(time.time() - started)}  # fmt: skip
                print(json.dumps(line), flush=True)
                log.open("a").write(json.dumps(line) + "\n")
            if step % 50 == 0:
                model.save_pretrained(log.parent / "last")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    torch.manual_seed(options.seed)
    splits = load_splits()
    text = Path(__file__).parent / "text"
    text.mkdir(exist_ok=True)
    for name in ("calibration", "evaluation"):
        (text / f"{name}.txt").write_text("\n\n".join(splits[name]) + "\n")
    tokenizer = train_tokenizer(splits["train"])
    tokenizer.save_pretrained(options.out)
    corpus, model = build_corpus(tokenizer, splits["train"], options.seed), build_model(tokenizer, options.seed)
    facts = {"tokens": len(corpus.stream), "parameters": model.num_parameters(), "phases": [asdict(p) for p in PHASES],
             "seed": options.seed, "torch": torch.__version__}  # fmt: skip
    train(model, corpus, PHASES, options.seed, options.out / "log.jsonl")
    model.to(torch.float16).save_pretrained(options.out)
    facts["checked"] = check(options.out)
    (options.out / "training.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
