"""The main job, end to end: ``make demo``.

Compresses the shipped model at 50 %, serves the dense and the compressed one after the other as real
``vllm serve`` processes, asks both through the openai client, and prints them side by side.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from openai import OpenAI

from benchmarks.common.server import Server, serve
from benchmarks.perplexity import HELD_OUT

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "demo" / "model"
CALIBRATION = ROOT / "demo" / "text" / "calibration.txt"
PROMPT = "And it came to pass in those days, that"
FACTS = "The token of silver river is answered king.\nThe token of early bread is house mountain.\n"
QUESTION = "What is the token of silver river?"
TOKENS = 96


def compress(out: Path, rank_ratio: float) -> None:
    command = [sys.executable, "-m", "offline_compress", str(MODEL), str(out), "--rank-ratio", str(rank_ratio)]
    subprocess.run([*command, "--calib-data", str(CALIBRATION)], check=True)


def perplexity(model: Path) -> str:
    """Through a fresh process, because an engine in this one would keep its memory."""
    command = [sys.executable, "-m", "benchmarks.perplexity", "--model", str(model), "--text", str(HELD_OUT)]
    line = subprocess.run([*command, "--context", "1024"], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    return line.rsplit("perplexity ", 1)[1].split(" ")[0]


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
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
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


def measure(name: str, model: Path, arguments: list[str]) -> dict[str, str]:
    print(f"Serving the {name} model: vllm serve {model} {' '.join(arguments)}", flush=True)
    with serve(model, arguments) as server:
        rows = ask(server)
    print(f"Scoring the {name} model on {HELD_OUT.name}", flush=True)
    return rows | {"held-out perplexity": perplexity(model)}


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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--rank-ratio", type=float, default=0.5)
    parser.add_argument("--out", type=Path, help="keep the compressed checkpoint here (default: a temporary folder)")
    options = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="palu-demo-") as scratch:
        out = options.out or Path(scratch) / "compressed"
        print(f"Compressing {MODEL.relative_to(ROOT)} to {options.rank_ratio:.0%} of its KV rank", flush=True)
        compress(out, options.rank_ratio)
        columns = {
            "dense": measure("dense", MODEL, []),
            "palu": measure("compressed", out, ["--attention-backend", "palu"]),
        }
    print_side_by_side(columns)
    print(f"\nPrompt: {PROMPT}\nChat:   {FACTS.strip()} {QUESTION}\nDone in {time.perf_counter() - started:.0f} s.")


if __name__ == "__main__":
    main()
