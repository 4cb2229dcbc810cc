"""Trains the shipped model: ``python -m demo.train OUT`` (needs the Debian packages of demo/text.py).

Writes an ordinary Llama checkpoint in float16, the tokenizer and ``training.json``. The seconds are in its
``log.jsonl``; the text splits go to ``demo/text/``.
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
    """A stretch of training: row length in tokens, rows per step, steps, share of each row builder.

    What was planted (``demo.circuit``) and the embedding learn at ``pace`` times the learning rate: slowly at
    first, or the first steps would wipe the circuit out.
    """

    length: int
    rows: int
    steps: int
    plain: float
    returning: float
    recall: float
    pace: float
    short: float = 0.0  # share of steps with four times the rows at a quarter of the length: cheaper per token

    @property
    def mix(self) -> dict[str, float]:
        return {"plain": self.plain, "returning": self.returning, "recall": self.recall}

    def sample(self, corpus: Corpus, rng: np.random.Generator) -> torch.Tensor:
        """The ``[rows, length]`` int64 token ids of one step."""
        split = 4 if rng.random() < self.short else 1
        return torch.from_numpy(batch(corpus, rng, self.rows * split, self.length // split, self.mix))


PHASES = (
    Phase(length=256, rows=8, steps=550, plain=0.4, returning=0.3, recall=0.3, pace=0.1),
    Phase(length=256, rows=8, steps=400, plain=0.5, returning=0.2, recall=0.3, pace=0.4),
    Phase(length=2048, rows=1, steps=850, plain=0.45, returning=0.25, recall=0.3, pace=0.3),
    Phase(length=2048, rows=1, steps=3400, plain=0.7, returning=0.15, recall=0.15, pace=0.5, short=0.7),
)
PEAK_LEARNING_RATE = 1e-3
WARMUP = 100  # steps
SAVE_EVERY = 50  # steps
PLANTED = ("embed_tokens", "layers.0.self_attn", "layers.1.self_attn")


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
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids([SPECIAL[0], SPECIAL[-1]])
    plant_induction(model, tokenizer.bos_token_id, torch.Generator().manual_seed(seed))
    return model


def learning_rate(step: int, first: int, total: int) -> float:
    """Cosine over all steps, with a warm-up from ``first``, the step at which this process started."""
    warm = min(1.0, (step - first + 1) / WARMUP)
    return PEAK_LEARNING_RATE * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / total)))


def build_optimizer(model: LlamaForCausalLM) -> torch.optim.AdamW:
    """AdamW in groups: planted or not, decayed (matrices) or not."""
    groups: dict[tuple[bool, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        planted = any(part in name for part in PLANTED)
        groups.setdefault((planted, 0.1 if parameter.ndim > 1 else 0.0), []).append(parameter)
    listed = [{"params": p, "planted": planted, "weight_decay": decay} for (planted, decay), p in groups.items()]
    return torch.optim.AdamW(listed, lr=PEAK_LEARNING_RATE, betas=(0.9, 0.95), fused=True)


def train(model: LlamaForCausalLM, corpus: Corpus, first: int, seed: int, out: Path) -> None:
    """Runs the phases from step ``first``; ``out`` gets a line per 25 steps and the weights of every 50th."""
    rng, optimizer = np.random.default_rng((seed, first)), build_optimizer(model)
    schedule, started = [phase for phase in PHASES for _ in range(phase.steps)], time.time()
    model.train()
    for step, phase in enumerate(schedule[first:], start=first):
        ids = phase.sample(corpus, rng)
        for group in optimizer.param_groups:
            pace = phase.pace if group["planted"] else 1.0
            group["lr"] = pace * learning_rate(step, first, len(schedule))
        loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        report(step + 1, len(schedule), phase, loss.item(), time.time() - started, out)
        if (step + 1) % SAVE_EVERY == 0:
            model.save_pretrained(out / "last")


def report(step: int, total: int, phase: Phase, loss: float, seconds: float, out: Path) -> None:
    if step % 25 == 0:
        line = {"step": step, "of": total, "length": phase.length, "loss": round(loss, 4), "seconds": round(seconds)}
        print(json.dumps(line), flush=True)
        with (out / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")


def start_or_resume(options: argparse.Namespace, train_documents: list[str]) -> tuple:
    """The tokenizer, the model and the first step. Resuming starts from the last saved weights, Adam's state anew."""
    if not options.resume:
        options.out.mkdir(parents=True)
        tokenizer = train_tokenizer(train_documents)
        tokenizer.save_pretrained(options.out)
        return tokenizer, build_model(tokenizer, options.seed), 0
    steps = [json.loads(line)["step"] for line in (options.out / "log.jsonl").read_text().splitlines()]
    model = LlamaForCausalLM.from_pretrained(options.out / "last", dtype=torch.float32)
    return PreTrainedTokenizerFast.from_pretrained(options.out), model, max(steps) // SAVE_EVERY * SAVE_EVERY


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from OUT/last")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    splits = load_splits()
    text = Path(__file__).parent / "text"
    text.mkdir(exist_ok=True)
    for name in ("calibration", "evaluation"):
        (text / f"{name}.txt").write_text("\n\n".join(splits[name]) + "\n")
    tokenizer, model, first = start_or_resume(options, splits["train"])
    corpus = build_corpus(tokenizer, splits["train"], options.seed)
    train(model, corpus, first, options.seed, options.out)
    model.to(torch.float16).save_pretrained(options.out)
    facts = {
        "tokens_of_text": len(corpus.stream),
        "parameters": model.num_parameters(),
        "phases": [asdict(phase) for phase in PHASES],
        "seed": options.seed,
        "torch": torch.__version__,
        "checked": check(options.out),
    }
    (options.out / "training.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
