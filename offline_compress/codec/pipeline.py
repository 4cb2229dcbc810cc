"""``palu-calibrate`` from the model to the files: load, collect, solve, allocate, measure, write."""

import time
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)

from offline_compress.calibration.samples import CalibrationSamples, load_samples
from offline_compress.codec.build import LEAST_CODED, SolvedLayer, build, chosen, solve_all
from offline_compress.codec.collect import FIRST_TEXTS, Collected, Collector, sample_positions
from offline_compress.codec.drift import usual_drift
from offline_compress.codec.judge import codec_divergence
from offline_compress.codec.options import CalibrateOptions
from offline_compress.codec.probes import loss_ratios
from offline_compress.codec.report import codec_report, estimate, write_card, write_codec_plot
from offline_compress.model.source import find_directory
from offline_compress.run.errors import CompressionError, reason
from offline_compress.run.journal import write_at_once
from offline_compress.run.progress import OnEvent
from offline_compress.run.staging import STATE, check_target, staged_directory
from palu_vllm.format.codec.digest import model_digest
from palu_vllm.format.codec.file import DRIFT, REPORT, Codec, save_codec
from palu_vllm.format.codec.layer_codec import LayerCodec

RANDOM_SHARE = 4  # one sample of random tokens for so many of text
PROBE_COMPRESSION = 5.0  # at which measured losses are held against predicted ones
COLLECTED = "moments.pt"


def run(options: CalibrateOptions, on_event: OnEvent) -> dict[str, Any]:
    """Writes a codec and returns its report; with ``dry_run`` returns the estimate. Raises CompressionError."""
    started = time.monotonic()
    directory = find_directory(options.model)
    check_target(options.out, [directory], options.overwrite)
    config = _config(directory)
    if options.dry_run:
        return estimate(directory, config, options)
    samples = _samples(options, directory, config.get_text_config().vocab_size)
    with staged_directory(options.out, options.resume) as out:
        model = load_model(directory, options.device)
        made_from = {"options": _asked(options), "samples": samples.digest, "model": model_digest(directory)}
        collected = _collected(model, samples.tokens[: -options.held_out], options, made_from, out, on_event)
        solved = solve_all(collected)
        if not solved:
            raise CompressionError(f"{options.model} has no attention layer that can be coded; choose another model.")
        held_out = samples.tokens[-options.held_out :]
        ratios = _ratios(model, solved, samples.tokens[0], options, on_event)
        codec, facts = _codec(model, solved, ratios, held_out, options, on_event)
        about = {"name": options.model, "digest": made_from["model"], "num_layers": _num_layers(config)}
        usual = usual_drift(model, held_out, codec)
        save_codec(out, Codec(codec, about, {"context": options.context, DRIFT: usual}))
        report = codec_report(options, samples, solved, codec, ratios, facts, time.monotonic() - started)
        write_at_once(out / REPORT, report)
        write_card(report, out)
        write_codec_plot(report, out)
    return report


def _ratios(
    model: PreTrainedModel,
    solved: dict[int, SolvedLayer],
    sample: torch.Tensor,
    options: CalibrateOptions,
    on_event: OnEvent,
) -> dict[int, float]:
    """What layers lose over what moments say; nothing is known where nothing is quantized."""
    if options.target_compression < LEAST_CODED:
        return {}
    return loss_ratios(model, sample, solved, chosen(solved, PROBE_COMPRESSION, options.max_formats), on_event)


def _codec(
    model: PreTrainedModel,
    solved: dict[int, SolvedLayer],
    ratios: dict[int, float],
    held_out: torch.Tensor,
    options: CalibrateOptions,
    on_event: OnEvent,
) -> tuple[dict[int, LayerCodec], dict[str, float]]:
    """The layers' codecs, and what they cost: predicted, and measured on samples that nothing was fitted to."""

    def made(compression: float) -> tuple[dict[int, LayerCodec], float]:
        allocation = chosen(solved, compression, options.max_formats, ratios)
        slots = zip(solved.items(), allocation.slots, strict=True)
        return {number: build(layer, slot) for (number, layer), slot in slots}, allocation.loss

    probe, expected = made(PROBE_COMPRESSION)
    ratio = codec_divergence(model, held_out[:1], probe) / max(expected, 1e-30)
    on_event({"event": "note", "text": f"a probe loses {ratio:.2f} times what its layers lose one by one"})
    codec, loss = made(options.target_compression)
    kl = codec_divergence(model, held_out, codec)
    return codec, {"predicted_kl": ratio * loss, "kl": kl}


def _collected(
    model: PreTrainedModel,
    samples: torch.Tensor,
    options: CalibrateOptions,
    made_from: dict[str, Any],
    out: Path,
    on_event: OnEvent,
) -> Collected:
    """The moments, from an earlier run where there are those of the same model, samples and options."""
    kept = out.parent / STATE / COLLECTED
    if options.resume and kept.exists():
        state = torch.load(kept, weights_only=False)  # written by this command in its own work directory
        if state["made_from"] == made_from:
            on_event({"event": "note", "text": "moments of the run before are taken over"})
            return state["collected"]
    collector = Collector(model, 1 if options.per_head else options.group_size)
    generator = torch.Generator().manual_seed(options.seed)
    text, random = samples, _random_rows(samples, model.config.get_text_config().vocab_size, options, generator)
    context, started, done = _context(model, options), time.monotonic(), 0
    total = len(text) + len(random)
    for rows, gradients in ((text, True), (random, False)):
        for number, row in enumerate(rows):
            positions = sample_positions(number, len(rows), len(row), context, generator)
            collector.sample(row, positions, generator, gradients)
            done += 1
            left = (time.monotonic() - started) / done * (total - done)
            on_event({"event": "sample", "number": done - 1, "of": total, "seconds_left": round(left)})
    collector.first_tokens(_first_tokens(samples, generator))
    if options.resume:
        kept.parent.mkdir(exist_ok=True)
        torch.save({"made_from": made_from, "collected": collector.collected}, kept)
    return collector.collected


def _random_rows(
    samples: torch.Tensor, vocab_size: int, options: CalibrateOptions, generator: torch.Generator
) -> torch.Tensor:
    """Rows of random tokens, for what text of other kinds may hold. Only keys and values are looked at."""
    count = 0 if options.no_data else -(-len(samples) // RANDOM_SHARE)
    random = torch.randint(vocab_size, (count, samples.shape[1]), generator=generator)
    random[:, 0] = samples[:count, 0]
    return random


def _first_tokens(samples: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The one that every text begins with, or many."""
    if len(set(samples[:, 0].tolist())) == 1 and len(samples) > 1:
        return samples[:1, 0]
    tokens = samples.flatten()
    return tokens[torch.randperm(len(tokens), generator=generator)[:FIRST_TEXTS]]


def _samples(options: CalibrateOptions, directory: Path, vocab_size: int) -> CalibrationSamples:
    count = options.held_out + options.samples
    if options.no_data:
        generator = torch.Generator().manual_seed(options.seed)
        tokens = torch.randint(vocab_size, (count, options.seqlen), generator=generator)
        return CalibrationSamples("random tokens", tokens)
    samples = load_samples(
        options.calib_data or "", directory, vocab_size, count, options.seqlen, options.seed, options.calib_field
    )
    if len(samples.tokens) <= options.held_out:
        raise CompressionError(
            f"{options.calib_data} has {len(samples.tokens)} samples of {options.seqlen} tokens, and "
            f"{options.held_out} are held out; give more text or shorter samples."
        )
    return samples


def _config(directory: Path) -> Any:
    try:
        return AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CompressionError(
            f"{directory} has no configuration that transformers knows ({reason(error)}); give a model directory."
        ) from error


def load_model(directory: Path, device: str) -> PreTrainedModel:
    """The model, which nothing trains, on ``auto`` or a device of torch. Raises CompressionError."""
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    dtype = torch.float32 if where == "cpu" else "auto"
    try:
        kind = _kind(AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False))
        model = kind.from_pretrained(directory, dtype=dtype, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError) as error:
        raise CompressionError(
            f"{directory} cannot be loaded as a causal language model ({reason(error)}); choose another model."
        ) from error
    return model.to(where).eval().requires_grad_(False)


def _kind(config: PreTrainedConfig) -> Any:
    """Some models that see images are no causal ones to transformers; text is all that they are asked here."""
    sees = type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return AutoModelForImageTextToText if sees else AutoModelForCausalLM


def _context(model: PreTrainedModel, options: CalibrateOptions) -> int:
    """Not more than the model has."""
    return min(options.context, getattr(model.config.get_text_config(), "max_position_embeddings", options.context))


def _num_layers(config: Any) -> int:
    return config.get_text_config().num_hidden_layers


def _asked(options: CalibrateOptions) -> dict[str, Any]:
    """What moments depend on."""
    names = ("samples", "held_out", "seqlen", "context", "per_head", "group_size", "seed", "no_data")
    return {name: getattr(options, name) for name in names}
