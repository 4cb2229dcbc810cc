"""Perplexity of a model, scored by the vLLM that serves it: what is scored is what users get.

``python -m benchmarks.perplexity --model DIR --text FILE --context N --json``

The text is cut into rows of ``context`` tokens, which begin as the tokenizer begins a prompt (with its BOS, if
it adds one); every token of a row but the first is scored, given those before it. Dense and compressed alike.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common.shipped import HELD_OUT


def rows_of(
    token_ids: Sequence[int], context: int, begin: Sequence[int] = (), limit: int | None = None
) -> list[list[int]]:
    """Rows of ``context`` ids that start with ``begin``; a shorter last one is kept if it has something to score.

    Raises ValueError if none is left.
    """
    fresh = context - len(begin)
    if context < 2 or fresh < 1:
        raise ValueError(f"--context is {context}; expected at least 2 tokens.")
    rows = [[*begin, *token_ids[i : i + fresh]] for i in range(0, len(token_ids), fresh)]
    rows = [row for row in rows if len(row) >= 2][:limit]
    if not rows:
        raise ValueError(f"the text has {len(token_ids)} tokens; expected at least 2.")
    return rows


def spread_rows(rows: list[list[int]], limit: int) -> list[list[int]]:
    """At most ``limit`` of ``rows``, spread evenly over them; a shorter last one is left out."""
    whole = [row for row in rows if len(row) == len(rows[0])]
    count = min(limit, len(whole))
    return [whole[i * len(whole) // count] for i in range(count)]


def row_loss(prompt_logprobs: Sequence, row: Sequence[int]) -> float:
    """Summed negative log-likelihood in nats of ``row[1:]`` from vLLM's prompt logprobs."""
    return -sum(prompt_logprobs[i][token].logprob for i, token in enumerate(row) if i > 0)


def set_environment() -> None:
    """vLLM in this process, quiet, with a small cache on a CPU; what the user has set stays."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # stdout is for the result
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


def load_llm(model: Path, context: int, dtype: str, **options):
    """A vLLM engine in this process. Imports vLLM only here, because its environment is set first."""
    set_environment()
    from vllm import LLM

    return LLM(
        model=str(model),
        dtype=dtype,
        max_model_len=context + 1,
        enforce_eager=True,
        max_num_batched_tokens=max(2048, context + 1),
        max_num_seqs=8,
        enable_prefix_caching=False,
        **options,
    )


def codec_options(codec: Path | None) -> dict:
    """What vLLM is told of a directory that ``palu-calibrate`` wrote."""
    if codec is None:
        return {}
    return {"attention_backend": "palu", "additional_config": {"palu": {"codec": str(codec)}}}


def perplexity(
    model: Path,
    text: Path,
    context: int,
    dtype: str = "auto",
    limit: int | None = None,
    spread: bool = False,
    kv_cache_dtype: str = "auto",
    codec: Path | None = None,
) -> dict:
    """``{"perplexity", "tokens", "seconds", ...}`` of one checkpoint, with its ``codec`` if any, on one text file.

    ``limit`` rows are the first ones, or with ``spread`` taken evenly from the whole text.
    """
    from vllm import SamplingParams

    started = time.perf_counter()
    llm = load_llm(model, context, dtype, kv_cache_dtype=kv_cache_dtype, **codec_options(codec))
    tokenizer = llm.get_tokenizer()
    ids = tokenizer.encode(text.read_text(encoding="utf-8"), add_special_tokens=False)
    rows = rows_of(ids, context, tokenizer.encode(""), None if spread else limit)
    if spread:
        rows = spread_rows(rows, limit or len(rows))
    scoring = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": row} for row in rows], scoring, use_tqdm=sys.stderr.isatty())
    loss = math.fsum(row_loss(out.prompt_logprobs, row) for out, row in zip(outputs, rows, strict=True))
    tokens = sum(len(row) - 1 for row in rows)
    return {
        "perplexity": round(math.exp(loss / tokens), 4),
        "tokens": tokens,
        "seconds": round(time.perf_counter() - started, 1),
        "model": str(model),
        "text": text.name,
        "context": context,
        "dtype": dtype,
        "kv_cache_dtype": kv_cache_dtype,
        "codec": codec and str(codec),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.perplexity", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a dense or compressed checkpoint")
    parser.add_argument("--text", type=Path, default=HELD_OUT, help="held-out text (default: the shipped one)")
    parser.add_argument("--context", type=int, default=1024, help="tokens per row")
    parser.add_argument("--dtype", default="auto", help="as vLLM's --dtype")
    parser.add_argument("--limit", type=int, help="score the first N rows only")
    parser.add_argument("--spread", action="store_true", help="spread the rows of --limit evenly over the text")
    parser.add_argument("--kv-cache-dtype", default="auto", help="as vLLM's --kv-cache-dtype")
    parser.add_argument("--codec", type=Path, help="a codec of the model, written by palu-calibrate")
    parser.add_argument("--json", action="store_true", help="one JSON line instead of a sentence")
    options = parser.parse_args()
    for path in (options.model, options.text, options.codec):
        if path and not path.exists():
            sys.exit(f"{path} does not exist; expected a model directory, a text file, and a codec's directory if any.")
    try:
        result = perplexity(
            options.model,
            options.text,
            options.context,
            options.dtype,
            options.limit,
            options.spread,
            options.kv_cache_dtype,
            options.codec,
        )
    except ValueError as error:
        sys.exit(str(error))
    if options.json:
        print(json.dumps(result))
    else:
        print("{model}: perplexity {perplexity} on {tokens} tokens of {text}, {seconds} s".format(**result))


if __name__ == "__main__":
    main()
