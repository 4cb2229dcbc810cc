"""The main job, end to end: ``make demo``.

Makes a KV codec of the shipped model and compresses it the paper's way at 50 %, serves the dense model, the same model
with the codec and the compressed one as real ``vllm serve`` processes, asks all three through the openai client, and
prints them side by side.
"""

import json
import math
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from openai import OpenAI
from transformers import AutoTokenizer

from benchmarks.common.commands import CommandError, calibrate, compress
from benchmarks.common.output import command_line
from benchmarks.common.provenance import ROOT
from benchmarks.common.server import ONE_THREAD, Server, starting, wait_until_healthy
from benchmarks.common.shipped import HELD_OUT, MODEL, PROMPT
from benchmarks.perplexity import rows_of, spread_rows

FACTS = "The token of silver river is answered king.\nThe token of early bread is house mountain.\n"
QUESTION = "What is the token of silver river?"
TOKENS = 96
SAMPLES = 8  # of calibration text; more change nothing that is shown
QUICK = ["--samples", SAMPLES, "--context", 2048]
CONTEXT, ROWS = 1024, 12  # of held-out text
FLAGS = ["--enforce-eager", "--max-model-len", "2048"]  # compiling would take longer than all that is asked


def client_of(server: Server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none")


def held_out_rows() -> list[list[int]]:
    """Token ids, spread evenly over the held-out text."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    ids = tokenizer.encode(HELD_OUT.read_text(encoding="utf-8"), add_special_tokens=False)
    return spread_rows(rows_of(ids, CONTEXT, tokenizer.encode("")), ROWS)


def loss(client: OpenAI, model: str, row: Sequence[int]) -> float:
    """Summed negative log-likelihood in nats of the tokens of a row but the first, as the server computes it."""
    answer = client.completions.create(
        model=model, prompt=list(row), max_tokens=1, temperature=0, extra_body={"prompt_logprobs": 0}
    )
    found = answer.choices[0].model_extra["prompt_logprobs"]
    return -sum(found[i][str(token)]["logprob"] for i, token in enumerate(row) if i)


def perplexity(server: Server) -> str:
    rows, client = held_out_rows(), client_of(server)
    losses = math.fsum(loss(client, server.model, row) for row in rows)
    return f"{math.exp(losses / sum(len(row) - 1 for row in rows)):.4f}"


def completion(client: OpenAI, model: str) -> tuple[str, float]:
    """The text and the tokens per second of one greedy completion."""
    started = time.perf_counter()
    answer = client.completions.create(
        model=model, prompt=PROMPT, max_tokens=TOKENS, temperature=0, extra_body={"ignore_eos": True}
    )
    return answer.choices[0].text, answer.usage.completion_tokens / (time.perf_counter() - started)


def chat(client: OpenAI, model: str) -> str:
    messages = [{"role": "user", "content": FACTS + QUESTION}]
    answer = client.chat.completions.create(model=model, messages=messages, max_tokens=24, temperature=0)
    return answer.choices[0].message.content


def streamed(client: OpenAI, model: str) -> str:
    stream = client.completions.create(model=model, prompt=PROMPT, max_tokens=TOKENS, temperature=0, stream=True,
                                       extra_body={"ignore_eos": True})  # fmt: skip
    return "".join(chunk.choices[0].text for chunk in stream)


def ask(server: Server) -> dict[str, str]:
    """One row per thing asked. Raises RuntimeError if streaming and plain completion disagree."""
    client = client_of(server)
    completion(client, server.model)
    text, speed = completion(client, server.model)
    if streamed(client, server.model) != text:
        raise RuntimeError("the streamed completion differs from the plain one.")
    capacity = server.capacity_tokens()
    return {
        "completion (= streamed)": text.strip(),
        "chat": chat(client, server.model).strip(),
        "KV bytes per token": f"{2**30 / capacity:.0f}",
        "tokens per GiB (vLLM)": f"{capacity:,}",
        "tokens per second": f"{speed:.1f}",
    }


def print_side_by_side(columns: dict[str, dict[str, str]]) -> None:
    """Numbers as a table, texts below it."""
    rows = next(iter(columns.values()))
    texts = [name for name, value in rows.items() if len(value) > 30]
    print("\n" + " " * 26 + "".join(f"{name:>16}" for name in columns))
    for row in rows:
        if row not in texts:
            print(f"{row:<26}" + "".join(f"{column[row]:>16}" for column in columns.values()))
    for row in texts:
        print(f"\n{row}")
        for name, column in columns.items():
            print(f"  {name}: {column[row]}")


def demonstrate(out: Path, rank_ratio: float, compression: float) -> dict[str, dict[str, str]]:
    """What is asked of each server. The dense one starts while codec and checkpoint are made."""
    print(f"Serving the dense model: vllm serve {MODEL.relative_to(ROOT)} {' '.join(FLAGS)}", flush=True)
    environment = os.environ | ONE_THREAD
    palu = ["--attention-backend", "palu", *FLAGS]
    with starting(MODEL, FLAGS, environment=environment) as dense:
        print(f"Making a codec for {compression:g} times fewer bytes", flush=True)
        calibrate(out / "codec", "--target-compression", compression, *QUICK)
        coded = [*palu, "--additional-config", json.dumps({"palu": {"codec": str(out / "codec")}})]
        print(f"Serving the same model with it: vllm serve {shlex.join([str(MODEL), *coded])}", flush=True)
        with starting(MODEL, coded, environment=environment) as codec:
            print(f"Compressing it the paper's way to {rank_ratio:.0%} of its KV rank", flush=True)
            compress(out / "compressed", "--rank-ratio", rank_ratio, "--calib-samples", SAMPLES, quiet=False)
            command = shlex.join([str(out / "compressed"), *palu])
            print(f"Serving the compressed model: vllm serve {command}", flush=True)
            with starting(out / "compressed", palu, environment=environment) as paper:
                return asked({"dense": dense, "codec": codec, "paper's way": paper})


def asked(servers: dict[str, Server]) -> dict[str, dict[str, str]]:
    """The column of every server; what they are asked one after the other, and their perplexity side by side."""
    for server in servers.values():
        wait_until_healthy(server)
    print(f"Asking all, and scoring them on {HELD_OUT.name}", flush=True)
    columns = {name: ask(server) for name, server in servers.items()}
    with ThreadPoolExecutor() as pool:
        for column, scored in zip(columns.values(), pool.map(perplexity, servers.values()), strict=True):
            column["held-out perplexity"] = scored
    return columns


def main() -> None:
    parser = command_line("benchmarks.demo", __doc__)
    parser.add_argument("--rank-ratio", type=float, default=0.5)
    parser.add_argument("--target-compression", type=float, default=4.0)
    parser.add_argument("--out", type=Path, help="keep codec and checkpoint here (default: a temporary folder)")
    options = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="palu-demo-") as scratch:
        try:
            columns = demonstrate(options.out or Path(scratch), options.rank_ratio, options.target_compression)
        except CommandError as error:
            sys.exit(str(error))
    print_side_by_side(columns)
    print(f"\nPrompt: {PROMPT}\nChat:   {FACTS.strip()} {QUESTION}\nDone in {time.perf_counter() - started:.0f} s.")


if __name__ == "__main__":
    main()
