"""``finetune()``: LoRA on a compressed checkpoint, merged back into it."""

import json
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from offline_compress.calibration.samples import CalibrationSamples, load_samples
from offline_compress.checkpoint.report import REPORT
from offline_compress.checkpoint.writer import overwrite
from offline_compress.finetune.lora import MODULES, add_adapters, merged_weights, simulate_packing
from offline_compress.finetune.options import FinetuneOptions
from offline_compress.finetune.training import Schedule, train
from offline_compress.model.source import tensors_of
from offline_compress.plan import DEFAULT_SEQLEN, device_of
from offline_compress.run.errors import CompressionError
from offline_compress.run.progress import OnEvent, ignore
from offline_compress.run.provenance import git_revision, tool_version, versions
from offline_compress.run.staging import check_target, staged_directory
from palu_vllm.format.checkpoint import check_shapes, read_config, read_json

PACKAGES = ("torch", "transformers", "peft")
MEAN_OF = 10  # steps at each end whose mean loss is reported


def finetune(options: FinetuneOptions, on_event: OnEvent = ignore) -> dict[str, Any]:
    """Trains and writes the checkpoint, in place or to the new directory ``out``; returns the record of the training.

    Raises CompressionError or CheckpointError with one sentence for what cannot be trained. Until the new checkpoint is
    complete, and after any error, the old one is as it was.
    """
    started, directory = time.monotonic(), options.checkpoint
    config, *_ = read_config(directory)
    if config.get("quantization_config"):
        raise CompressionError(f"{directory} has quantized weights, which cannot be trained; train it before that.")
    check_shapes(directory)
    if options.out is None:
        check_target(directory.resolve(), [], overwrite=True)
    else:
        check_target(options.out, [directory, Path(options.data)], overwrite=False)
    samples = _samples(options, config)
    on_event({"event": "calibration", "text": samples.label})
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        model, losses = _trained(options, samples, on_event)
    record = _record(options, samples, losses, round(time.monotonic() - started, 2))
    with staged_directory(options.out or directory) as staging:
        _write_weights(directory, model, staging)
        _write_record(record, staging)
    return record


def _samples(options: FinetuneOptions, config: dict[str, Any]) -> CalibrationSamples:
    context = config.get("max_position_embeddings") or DEFAULT_SEQLEN
    if options.seqlen is not None and options.seqlen > context:
        raise CompressionError(f"samples of {options.seqlen} tokens exceed the model's context of {context}.")
    count = options.samples if options.steps is None else min(options.samples, options.steps * options.batch_size)
    seqlen = options.seqlen or min(DEFAULT_SEQLEN, context)
    vocabulary, field = config["vocab_size"], options.data_field
    return load_samples(options.data, options.checkpoint, vocabulary, max(1, count), seqlen, options.seed, field)


def _trained(
    options: FinetuneOptions, samples: CalibrationSamples, on_event: OnEvent
) -> tuple[PreTrainedModel, list[float]]:
    """The model with its trained adapters, and the loss of every step."""
    device = device_of(options.device)
    model = AutoModelForCausalLM.from_pretrained(options.checkpoint, dtype=torch.float32, trust_remote_code=False)
    model = model.to(device)
    parameters = add_adapters(model, options.rank, options.alpha)
    simulate_packing(model)
    steps = options.steps
    if steps is None:
        steps = -(-len(samples.tokens) // options.batch_size)
    schedule = Schedule(steps, options.batch_size, options.learning_rate, options.seed)
    return model, train(model, parameters, samples.tokens.to(device), schedule, on_event)


def _write_weights(directory: Path, model: PreTrainedModel, staging: Path) -> None:
    """Copies the checkpoint and writes every merged weight into its place, in the dtype that it has there."""
    shutil.copytree(directory, staging, dirs_exist_ok=True)
    stored = tensors_of(staging)
    for name, weight in merged_weights(model):
        overwrite(stored[name], name, weight)
    for file in {tensor.file for tensor in stored.values()}:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def _record(
    options: FinetuneOptions, samples: CalibrationSamples, losses: list[float], seconds: float
) -> dict[str, Any]:
    """What ``palu_report.json`` says about this training."""
    asked = {name: value for name, value in asdict(options).items() if name not in ("checkpoint", "data", "out")}
    ends = {"first_loss": losses[:MEAN_OF], "last_loss": losses[-MEAN_OF:]}
    return asked | {
        "data": samples.label,
        "data_sha256": samples.digest,
        "seqlen": samples.tokens.shape[1],
        "steps": len(losses),
        "schedule": "cosine",
        "modules": list(MODULES),
        **{name: round(sum(part) / len(part), 4) if part else None for name, part in ends.items()},
        "seconds": seconds,
        "tool_version": tool_version(),
        "git_revision": git_revision(),
        "packages": versions(PACKAGES),
    }


def _write_record(record: dict[str, Any], staging: Path) -> None:
    """Appends to ``finetuned`` in ``palu_report.json`` and tells it in ``README.md``."""
    path = staging / REPORT
    report = read_json(path) if path.exists() else {}
    report["finetuned"] = [*report.get("finetuned", []), record]
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    with (staging / "README.md").open("a", encoding="utf-8") as card:
        card.write(f"\nFine-tuned by palu-finetune: LoRA, {record['steps']} steps on {record['data']}.\n")
