"""vLLM in this process: the shipped model's tokens beside those of a CPU, and time per token of models of 8B shape.

``python -m benchmarks.gpu.engine tokens --arm palu --models .gpu/models --rows FILE`` compares greedy tokens in float32
with ``tokens.json`` of that folder, which ``--write`` wrote on a CPU; with ``--graphs`` decoding steps are CUDA graphs.
``... time --arm palu_4 --rows FILE`` serves random weights and takes the time per token of decoding batches, as graphs.
One arm per process.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.shipped import MODEL, PROMPT
from benchmarks.gpu.setting import Row, append, parser_of
from palu_vllm.attention_backend.graphs import CUDA_GRAPHS

SHIPPED = ("dense", "palu", "codec")
PROMPTS = (PROMPT, "In the beginning", "The king said unto")
TOKENS = 32
BATCHES = 1, 2, 4  # requests of the graphs that are captured for the shipped model; three of them are padded
DECODED = 33  # tokens of the longer of two runs, whose difference is decoding alone
GRAPHS = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}  # graphs without the minute of torch.compile


def start(**options: Any) -> Any:
    """An engine in this process. The plugin is found by its entry point."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM

    return LLM(disable_log_stats=True, seed=0, **options)


def shipped_options(arm: str, models: Path) -> dict[str, Any]:
    """Of the model that the repository ships, compressed and with a codec as ``benchmarks.gpu.prepare`` made them."""
    common = {"dtype": "float32", "enforce_eager": True, "max_model_len": 256, "kv_cache_memory_bytes": 256 << 20}
    of_arm: dict[str, dict[str, Any]] = {
        "dense": {"model": str(MODEL)},
        "palu": {"model": str(models / "palu"), "attention_backend": "palu"},
        "codec": {"model": str(MODEL), "additional_config": {"palu": {"codec": str((models / "codec").resolve())}}},
    }
    return common | of_arm[arm]


def graphed(options: dict[str, Any], batches: Sequence[int]) -> dict[str, Any]:
    """With decoding steps of these numbers of requests as CUDA graphs, attention inside them."""
    palu = options.get("additional_config", {}).get("palu", {}) | {CUDA_GRAPHS: True}
    graphs = {"enforce_eager": False, "compilation_config": GRAPHS | {"cudagraph_capture_sizes": list(batches)}}
    return options | graphs | {"additional_config": {"palu": palu}}


def greedy(llm: Any, requests: Sequence[Any], tokens: int) -> list[list[int]]:
    from vllm import SamplingParams

    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    return [list(each.outputs[0].token_ids) for each in llm.generate(requests, params, use_tqdm=False)]


def told_tokens(options: argparse.Namespace) -> Row:
    """Whether the tokens are those of the file; with ``--write`` they become the file's."""
    path = options.models / "tokens.json"
    expected = json.loads(path.read_text()) if path.exists() else {}
    shipped = shipped_options(options.arm, options.models)
    found = greedy(start(**(graphed(shipped, BATCHES) if options.graphs else shipped)), PROMPTS, TOKENS)
    row = {"experiment": "tokens", "arm": options.arm, "prompts": len(PROMPTS), "tokens": TOKENS}
    row["graphs"] = options.graphs
    if options.write:
        path.write_text(json.dumps(expected | {options.arm: found}))
        return row | {"ok": True, "written": True}
    pairs = list(zip(found, expected[options.arm], strict=True))
    equal = sum(mine == other for ours, theirs in pairs for mine, other in zip(ours, theirs, strict=True))
    return row | {"ok": all(ours == theirs for ours, theirs in pairs), "equal_tokens": equal}


def seconds(llm: Any, requests: int, context: int, tokens: int) -> float:
    """Of one batch of random prompts, which all begin at once."""
    prompts = [{"prompt_token_ids": [3 + (i * 7 + r) % 200 for i in range(context)]} for r in range(requests)]
    begun = time.perf_counter()
    greedy(llm, prompts, tokens)
    return time.perf_counter() - begun


def told_times(options: argparse.Namespace) -> list[Row]:
    """Per batch the time of a step: of ``DECODED`` tokens and of one, the difference over the steps between."""
    from benchmarks.gpu.dummy_models import write_model

    context, batches = (32, (1, 2)) if options.rehearse else (4096, (1, 32))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        own = write_model(Path(folder), options.arm, options.rehearse)
        memory = 256 << 20 if options.rehearse else 32 << 30
        own |= {"max_model_len": context + 64, "enable_prefix_caching": False, "kv_cache_memory_bytes": memory}
        llm = start(**(own | {"enforce_eager": True} if options.rehearse else graphed(own, batches)))
        for requests in batches:
            seconds(llm, requests, context, 2)  # compiles what is compiled at first use
            short, long = (seconds(llm, requests, context, tokens) for tokens in (1, DECODED))
            row = {"experiment": "time_per_token", "arm": options.arm, "batch": requests, "context": context}
            rows.append(row | {"seconds_per_step": (long - short) / (DECODED - 1), "seconds_of_prefill": short})
            append(options.rows, rows[-1] | {"rehearsal": options.rehearse})
    return rows


def main() -> None:
    parser = parser_of("engine", __doc__ or "")
    parser.add_argument("what", choices=("tokens", "time"))
    parser.add_argument("--arm", required=True)
    parser.add_argument("--models", type=Path, default=Path(".gpu/models"), help="what benchmarks.gpu.prepare made")
    parser.add_argument("--graphs", action="store_true", help="tokens: decoding steps as CUDA graphs, on a GPU")
    parser.add_argument("--write", action="store_true", help="tokens: write what a CPU gives, in place of comparing")
    options = parser.parse_args()
    if options.what == "time":
        print(told_times(options))
        return
    row = told_tokens(options)
    append(options.rows, row | {"rehearsal": options.rehearse})
    print(row)
    if not row["ok"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
