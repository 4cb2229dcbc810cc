"""Time per decoded token of the dense and the compressed model on a CPU, in one run.

``python -m benchmarks.serving.cpu [--json]`` starts a server for the dense model, one for the compressed model, and one
for it with packed latents of ``--latent-bits``, lets all stay up, and asks them in
turn: ``--batch`` concurrent streams that each decode ``--tokens`` tokens behind ``--context`` tokens. The time
per token of a stream is the time between its first and its last token over the tokens between them.
The share of the key rebuild is measured on the attention layer alone (``benchmarks.kernels.cpu_attention``).
"""

import argparse
import json
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from openai import OpenAI
from transformers import AutoTokenizer

from benchmarks.common.commands import compress, run
from benchmarks.common.output import command_line, write_result
from benchmarks.common.server import Server, serve
from benchmarks.common.shipped import HELD_OUT, MODEL


def stream_seconds_per_token(server: Server, prompt: list[int], tokens: int) -> float:
    """Seconds per token of one stream, the first token left out."""
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
    stream = client.completions.create(
        model=server.model, prompt=prompt, max_tokens=tokens, temperature=0, stream=True,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    moments = [time.perf_counter() for _ in stream]
    return (moments[-1] - moments[0]) / (tokens - 1)


def batch_seconds_per_token(server: Server, prompts: list[list[int]], tokens: int) -> float:
    """Median over concurrent streams. A first round fills the prefix cache, so that no prefill runs between tokens.

    That takes prompts of one token more than whole blocks: vLLM computes the last block of a full hit again.
    """
    with ThreadPoolExecutor(len(prompts)) as pool:
        list(pool.map(lambda prompt: stream_seconds_per_token(server, prompt, 2), prompts))
        return statistics.median(pool.map(lambda prompt: stream_seconds_per_token(server, prompt, tokens), prompts))


def distinct_prompts(context: int, batch: int) -> list[list[int]]:
    ids = AutoTokenizer.from_pretrained(MODEL).encode(HELD_OUT.read_text(encoding="utf-8"))
    length = context + 1
    if len(ids) < length * batch:
        raise ValueError(
            f"{HELD_OUT.name} has {len(ids)} tokens; expected {length} x {batch}: lower --context or --batch."
        )
    return [ids[i * length : (i + 1) * length] for i in range(batch)]


def rebuild_share(context: int, batch: int) -> dict:
    """The parts of one layer's decode attention, from a run of ``benchmarks.kernels.cpu_attention`` at these sizes."""
    sizes = ["--context", context, "--batch", batch]
    return json.loads(run("benchmarks.kernels.cpu_attention", *sizes, "--json"))


def measure(options: argparse.Namespace) -> dict:
    prompts = distinct_prompts(options.context, options.batch)
    with ExitStack() as stack:
        out = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="palu-serving-"))) / "compressed"
        ranks = ["--search", options.search] if options.search else []
        report = compress(out, "--rank-ratio", options.rank_ratio, *ranks)
        palu = ["--dtype", options.dtype, "--attention-backend", "palu"]
        packed = ["--additional-config", json.dumps({"palu": {"latent_bits": options.latent_bits}})]
        arms = {
            "dense": stack.enter_context(serve(MODEL, ["--dtype", options.dtype])),
            "palu": stack.enter_context(serve(out, palu)),
            "palu_packed": stack.enter_context(serve(out, [*palu, *packed])),
        }
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(options.repeats):
            for name, server in arms.items():
                seconds[name].append(batch_seconds_per_token(server, prompts, options.tokens))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "ratio": round(medians["palu"] / medians["dense"], 2),
        "packed_over_unpacked": round(medians["palu_packed"] / medians["palu"], 2),
        "milliseconds_per_token": {name: round(1000 * value, 2) for name, value in medians.items()},
        "repeats_ms": {name: [round(1000 * v, 2) for v in values] for name, values in seconds.items()},
        "context": options.context, "batch": options.batch, "rank_ratio": options.rank_ratio,
        "objective": report["objective"], "search": report["search"],
        "rebuild_work_per_token": report["rebuild_work_per_token"],
        "latent_bits": options.latent_bits, "dtype": options.dtype,
        "attention_layer": rebuild_share(options.context, options.batch),
    }  # fmt: skip


def main() -> None:
    parser = command_line("benchmarks.serving.cpu", __doc__, "serving_cpu.json")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rank-ratio", type=float, default=0.5)
    parser.add_argument("--search", help="as palu-compress --search (default: its own)")
    parser.add_argument("--latent-bits", type=int, default=4, help="of the packed server")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measure(options)
    write_result(options.out, result)
    if options.json:
        print(json.dumps(result))
        return
    per_token = result["milliseconds_per_token"]
    print(f"dense {per_token['dense']} ms per token, palu {per_token['palu']} ms: {result['ratio']}x")
    print(f"packed: {per_token['palu_packed']} ms, {result['packed_over_unpacked']}x the unpacked")
    print(f"one layer's attention: {json.dumps(result['attention_layer'])}")


if __name__ == "__main__":
    main()
