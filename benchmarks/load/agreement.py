"""Do we measure what ``vllm bench serve`` measures? ``python -m benchmarks.load.agreement``.

Both ask one server for the same prompts and answers at the same time, so that a busy machine is so for both: once as
closed loops of ``--users`` each, once as open loops of ``--rate`` evenly spaced arrivals each. Compared are the medians
over turns of the median TTFT, TPOT and latency and of the throughput.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.demo import MODEL
from benchmarks.load.__main__ import locust_command, locust_environment
from benchmarks.load.server_state import metrics
from benchmarks.load.soak import ONE_THREAD, START_SECONDS
from benchmarks.perplexity import HELD_OUT
from benchmarks.provenance import ROOT, provenance
from benchmarks.server import Server, serve, vllm_command

RESULT = ROOT / "benchmarks" / "results" / "load_agreement.json"
# ours: vLLM's
NAMES = {
    "ttft_ms": "median_ttft_ms",
    "tpot_ms": "median_tpot_ms",
    "e2e_ms": "median_e2el_ms",
    "output_tokens_per_second": "output_throughput",
}
WARMUPS = 12
WORDS, TOKENS = (150, 350), (16, 64)


def write_prompts(file: Path, count: int, seed: int) -> None:
    """Passages of held-out text of different lengths with a number in front, as both clients read them."""
    words, generator = HELD_OUT.read_text(encoding="utf-8").split(), np.random.default_rng(seed)
    rows = []
    for index in range(count):
        length, first = generator.integers(*WORDS), generator.integers(len(words) - WORDS[1])
        prompt = f"{seed}.{index} " + " ".join(words[first : first + length])
        rows.append({"prompt": prompt, "output_tokens": int(generator.integers(*TOKENS))})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def vllm_bench(server: Server, prompts: Path, count: int, pace: Mapping[str, float], out: Path) -> list[str]:
    command = [vllm_command(), "bench", "serve", "--backend", "openai", "--base-url", server.url,
               "--model", server.model, "--dataset-name", "custom", "--dataset-path", str(prompts),
               "--custom-output-len", "-1", "--skip-chat-template", "--disable-shuffle", "--num-prompts", str(count),
               "--ignore-eos", "--temperature", "0", "--percentile-metrics", "ttft,tpot,e2el", "--disable-tqdm",
               "--num-warmups", str(WARMUPS), "--save-result", "--result-dir", str(out.parent),
               "--result-filename", out.name]  # fmt: skip
    if "rate" in pace:
        return [*command, "--request-rate", str(pace["rate"]), "--burstiness", "inf"]
    return [*command, "--max-concurrency", str(pace["users"])]


def locust(server: Server, prompts: Path, count: int, pace: Mapping[str, float], out: Path) -> list[str]:
    command = locust_command(["--headless", "--only-summary", "--host", server.url, "--model-name", server.model])
    command += ["--prompts", str(prompts), "--requests", str(count), "--json-result", str(out)]
    arrival = ["--arrival", "constant"] if "rate" in pace else []
    return [*command, *arrival, *(part for name, value in pace.items() for part in (f"--{name}", str(value)))]


def wait_for_work(server: Server, process: subprocess.Popen) -> None:
    """Until the server has made tokens for ``process``, or that has ended."""
    before = metrics(server.url)["vllm:generation_tokens_total"]
    while process.poll() is None and metrics(server.url)["vllm:generation_tokens_total"] == before:
        time.sleep(0.1)


def side_by_side(server: Server, prompts: Path, count: int, pace: Mapping[str, float]) -> dict[str, dict]:
    """Both clients at once: locust, which starts faster, while vLLM's still warms up. Raises CalledProcessError."""
    outs = {name: prompts.with_suffix(f".{name}.json") for name in ("vllm", "locust")}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(vllm_bench(server, prompts, count, pace, outs["vllm"]), **quiet) as theirs:
        wait_for_work(server, theirs)
        subprocess.run(
            locust(server, prompts, count, pace, outs["locust"]), check=True, env=locust_environment(), **quiet
        )
    found = {name: json.loads(out.read_text()) for name, out in outs.items()}
    ours = {name: found["locust"][name] for name in NAMES}
    return {
        "vllm": {ours: found["vllm"][theirs] for ours, theirs in NAMES.items()},
        "locust": {name: value["p50"] if isinstance(value, dict) else value for name, value in ours.items()},
    }


def compare(turns: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, float]:
    """Ours over theirs, each the median over its turns."""
    medians = {
        who: {name: statistics.median(turn[name] for turn in own) for name in NAMES} for who, own in turns.items()
    }
    return {name: round(medians["locust"][name] / medians["vllm"][name], 4) for name in NAMES}


def turns_of(server: Server, pace: Mapping[str, float], count: int, turns: int, scratch: Path) -> dict:
    """Every turn has prompts of its own."""
    found: dict[str, list] = {"vllm": [], "locust": []}
    for turn in range(turns):
        prompts = scratch / f"{'-'.join(pace)}{turn}.jsonl"
        write_prompts(prompts, count, turn)
        for name, values in side_by_side(server, prompts, count, pace).items():
            found[name].append(values)
    return {"pace": dict(pace), "ratio": compare(found), "turns": found}


def measure(users: int, rate: float, count: int, turns: int) -> dict:
    """The dense shipped model without a prefix cache, in which one client would find the other's prompts."""
    arguments = ["--dtype", "float32", "--max-model-len", "1024", "--enforce-eager", "--no-enable-prefix-caching"]
    with (
        serve(MODEL, arguments, environment=ONE_THREAD, start_seconds=START_SECONDS) as server,
        tempfile.TemporaryDirectory() as folder,
    ):
        loops = [turns_of(server, pace, count, turns, Path(folder)) for pace in ({"users": users}, {"rate": rate})]
    return {"closed": loops[0], "open": loops[1], "requests": count, "provenance": provenance()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load.agreement", description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=2)
    parser.add_argument("--rate", type=float, default=1.0)
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    result = measure(options.users, options.rate, options.requests, options.turns)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for loop in ("closed", "open"):
        print(f"{loop} loop, locust over vllm bench serve: {result[loop]['ratio']}")
    sys.exit(any(abs(ratio - 1) > 0.1 for loop in ("closed", "open") for ratio in result[loop]["ratio"].values()))


if __name__ == "__main__":
    main()
