"""One engine in a process of its own: ``python -m tests.support.processes.engine`` answers a JSON question from its
input.

For model runner V2, which is chosen when vLLM is imported, and for n-gram drafts, whose numba keeps vLLM 0.32 from
starting another engine on a CPU in the same process.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[3]
V2 = "VLLM_USE_V2_MODEL_RUNNER"


@dataclass(frozen=True)
class Answers:
    """The same requests twice to one engine."""

    tokens: list[list[int]]
    tokens_again: list[list[int]]
    cached_again: list[int]  # tokens of each prompt that the prefix cache gave
    rows: list[list[int]]  # (queries, tokens of context) of all requests of all batches
    attention: list[list[str]]  # what serving.attention_used found
    runner: str  # module of the model runner
    accepted_drafts: int


def ask(
    model: Path, requests: Sequence[Sequence[int]], max_tokens: int, options: dict[str, Any], **environment: str
) -> Answers:
    """Greedy tokens of an engine with ``options`` in a process with ``environment``; raises where it fails."""
    question = {"model": str(model), "requests": requests, "max_tokens": max_tokens, "options": options}
    command = [sys.executable, "-m", "tests.support.processes.engine"]
    process = subprocess.run(
        command, input=json.dumps(question), text=True, capture_output=True, cwd=ROOT, env=os.environ | environment
    )
    if process.returncode:
        raise RuntimeError(process.stderr[-4000:])
    return Answers(**json.loads(process.stdout.strip().splitlines()[-1]))


def pretend_that_triton_compiles_for_cpus() -> None:
    """vLLM asks for Triton's list of backends before it starts runner V2. Triton's interpreter, which needs none, then
    runs vLLM's own kernels.
    """
    import triton.backends

    triton.backends.backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True))


def _answer(question: dict[str, Any]) -> Answers:
    import pytest

    from tests.integration.conftest import watched_batches
    from tests.support.serving import attention_used, engine, outputs

    options = {"disable_log_stats": False} | question["options"]
    with pytest.MonkeyPatch.context() as patch, engine(Path(question["model"]), **options) as llm:
        batches = watched_batches(patch)
        first, again = (outputs(llm, question["requests"], question["max_tokens"]) for _ in range(2))
        counters = {metric.name: metric for metric in llm.get_metrics()}
        drafts = counters.get("vllm:spec_decode_num_accepted_tokens")
        return Answers(
            tokens=[list(output.outputs[0].token_ids) for output in first],
            tokens_again=[list(output.outputs[0].token_ids) for output in again],
            cached_again=[output.num_cached_tokens for output in again],
            rows=[[row.query_len, row.seq_len] for batch in batches for row in batch],
            attention=sorted(map(list, attention_used(llm))),
            runner=type(llm.llm_engine.model_executor.driver_worker.worker.model_runner).__module__,
            accepted_drafts=drafts.value if drafts else 0,
        )


if __name__ == "__main__":
    if os.environ.get(V2) == "1":
        pretend_that_triton_compiles_for_cpus()
    print(json.dumps(asdict(_answer(json.load(sys.stdin)))))
