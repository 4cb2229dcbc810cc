"""Drift of text of other kinds from a codec, what the codec costs there, and what watching costs a server.

``python -m benchmarks.serving.codec_drift --folder DIR --codec CODEC``, DIR made by ``benchmarks.real_models``, codes
keys and values of rows of every kind in transformers; a server finds the same (``tests/integration/codec/test_drift``).
A codec whose file does not say what is usual on its calibration is measured on ``wiki_calibration.txt`` first. With
``--steps`` decoding steps of the model are timed too, in this process, all watched and not watched.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from benchmarks.common.output import command_line, say, table, write_result
from benchmarks.perplexity import load_llm
from offline_compress.calibration.samples import load_samples
from offline_compress.codec.drift import usual_drift
from offline_compress.codec.pipeline import load_model
from offline_compress.codec.text_judge import TextJudgeOptions, judged
from offline_compress.run.progress import ignore
from palu_vllm.attention_backend.codec.drift import DriftOptions, stored_drift
from palu_vllm.attention_backend.codec.drift_files import Drift
from palu_vllm.format.codec.file import DRIFT, Codec, load_codec, save_codec

KINDS = ("wiki", "news", "code", "bulgarian")
REPEATS, DECODED, STREAMS = 10, 16, 8


def rows_of(text: Path, model: Path, options: TextJudgeOptions) -> torch.Tensor:
    """Token ids ``[rows, seqlen]``."""
    vocab_size = AutoConfig.from_pretrained(model).get_text_config().vocab_size
    return load_samples(str(text), model, vocab_size, options.rows, options.seqlen, options.seed).tokens


def with_usual(codec: Codec, dense: PreTrainedModel, model: Path, folder: Path, options: TextJudgeOptions) -> Codec:
    """The codec, with what drift is on its calibration."""
    if DRIFT in codec.facts:
        return codec
    rows = rows_of(folder / "wiki_calibration.txt", model, options)
    return replace(codec, facts={**codec.facts, DRIFT: usual_drift(dense, rows, codec.layers)})


def drifts(dense: PreTrainedModel, codec: Codec, rows: dict[str, torch.Tensor]) -> Iterator[dict[str, Any]]:
    """The metric of every kind of text."""
    usual = codec.facts[DRIFT]
    for kind, texts in rows.items():
        found = usual_drift(dense, texts, codec.layers)
        ratios = {layer: [a / b for a, b in zip(pair, usual[layer], strict=True)] for layer, pair in found.items()}
        drift = Drift(ratios, texts.numel())
        yield {"kind": kind, "drift_mean": round(drift.mean, 4), "drift_max": round(drift.largest, 4)}


def step_ms(llm: Any, row: torch.Tensor) -> float:
    """Mean time of a decoding step of ``STREAMS`` requests, the least of three runs."""
    prompts = [{"prompt_token_ids": row[: 64 + number].tolist()} for number in range(STREAMS)]
    return min(1000 * (_seconds(llm, prompts, DECODED + 1) - _seconds(llm, prompts, 1)) / DECODED for _ in range(3))


def _seconds(llm: Any, prompts: list[dict[str, list[int]]], tokens: int) -> float:
    from vllm import SamplingParams

    started = time.perf_counter()
    llm.generate(prompts, SamplingParams(max_tokens=tokens, ignore_eos=True), use_tqdm=False)
    return time.perf_counter() - started


def sample_ms(codec: Codec, tokens: int) -> float:
    """Median CPU time that all layers take for a sample of ``tokens``, on one thread."""
    torch.set_num_threads(1)

    def every_layer() -> float:
        started = time.process_time()
        for layer in codec.layers.values():
            key, value = torch.randn(tokens, *layer.key.sink.shape), torch.randn(tokens, *layer.value.sink.shape)
            cache = torch.zeros(1, layer.num_groups, tokens, layer.slot.bytes, dtype=torch.uint8)
            stored_drift(layer, key, value, torch.arange(tokens), cache, torch.arange(tokens))
        return 1000 * (time.process_time() - started)

    every_layer()
    return statistics.median(every_layer() for _ in range(REPEATS))


@contextmanager
def engine(model: Path, codec: Path, context: int, drift: Any) -> Iterator[Any]:
    """vLLM in this process with a codec, watched as ``drift`` says."""
    settings = {"palu": {"codec": str(codec), "drift": drift}}
    llm = load_llm(model, context, "float32", attention_backend="palu", additional_config=settings)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def steps(model: Path, codec: Codec, row: torch.Tensor) -> dict[str, float]:
    """Time of a decoding step that is not watched, and of one that is."""
    with tempfile.TemporaryDirectory(prefix="palu-drift-") as scratch:
        save_codec(Path(scratch), codec)
        found = {}
        for name, drift in (("plain_step_ms", False), ("watched_step_ms", {"seconds": 0})):
            with engine(model, Path(scratch), 256, drift) as llm:
                found[name] = round(step_ms(llm, row), 2)
    return found


def cost(codec: Codec) -> dict[str, Any]:
    """What watching takes, of the time of a server."""
    usual = DriftOptions()
    sample = sample_ms(codec, usual.tokens)
    share = {"share_of_time": round(sample / (1000 * usual.seconds), 6)}
    return {"sample_cpu_ms": round(sample, 2), "tokens": usual.tokens, "seconds_between": usual.seconds, **share}


def measure(options: argparse.Namespace) -> None:
    """Writes what is known so far after every part."""
    model = options.folder / options.model
    shape = TextJudgeOptions(rows=options.rows, seqlen=options.context)
    given, dense = load_codec(options.codec), load_model(model, "cpu")
    rows = {kind: rows_of(options.folder / f"{kind}_evaluation.txt", model, shape) for kind in KINDS}
    codec = with_usual(given, dense, model, options.folder, shape)  # fmt: skip
    facts = {
        "model": options.model, "codec": options.codec.name, "rows_of_each": options.rows, "context": options.context,
        "usual_from_file": DRIFT in given.facts, "warn_above": DriftOptions().warn_above,
    }  # fmt: skip
    found = list(drifts(dense, codec, rows))
    result: dict[str, Any] = {"rows": found, "cost": cost(codec), "facts": facts}
    write_result(options.out, result)
    for row in found:
        judgement = asdict(judged(dense, list(rows[row["kind"]]), codec.layers, ignore))
        row |= {name: round(judgement[name], 5) for name in ("kl", "same_top", "dense_perplexity", "coded_perplexity")}
        say(row)
        write_result(options.out, result)
    if options.steps:
        result["cost"] |= {"streams": STREAMS, **steps(model, codec, rows[KINDS[0]][0])}
        write_result(options.out, result)
    head = ["kind", "drift_mean", "drift_max", "kl", "same_top"]
    print(table(head, [[row[name] for name in head] for row in found]))


def main() -> None:
    parser = command_line("benchmarks.serving.codec_drift", __doc__, "codec_drift.json")
    parser.add_argument("--folder", type=Path, required=True, help="what `python -m benchmarks.real_models DIR` wrote")
    parser.add_argument("--model", default="smollm2", help="its folder within that")
    parser.add_argument("--codec", type=Path, required=True, help="a codec of the model, by palu-calibrate")
    parser.add_argument("--rows", type=int, default=2, help="of each kind of text")
    parser.add_argument("--context", type=int, default=256, help="tokens of a row")
    parser.add_argument("--steps", action="store_true", help="time decoding steps too")
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
