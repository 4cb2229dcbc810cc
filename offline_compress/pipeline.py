"""``compress()``: the steps from a dense model to a compressed checkpoint, in order."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from offline_compress.calibration.fisher import fisher_information, group_importance
from offline_compress.calibration.samples import CalibrationSamples, load_samples
from offline_compress.checkpoint.carried import carried
from offline_compress.checkpoint.companions import copy_companions
from offline_compress.checkpoint.model_card import write_model_card
from offline_compress.checkpoint.output import output_config, tensor_specs
from offline_compress.checkpoint.report import estimate, final_report, write_report
from offline_compress.checkpoint.writer import MAX_SHARD_BYTES, CheckpointWriter
from offline_compress.checkpoint.written import Written, WrittenLayer
from offline_compress.factors.clip_ratio import ClipSearch
from offline_compress.factors.layer import ClipSearches, LayerOutcome, Rotations, write_attention
from offline_compress.factors.layer_views import LayerView, layer_views
from offline_compress.model.access import is_replaced, key_value_weights, whole_model
from offline_compress.model.source import SourceModel, check_finite, open_source
from offline_compress.options import CompressOptions
from offline_compress.plan import NO_CALIBRATION, Plan, make_plan
from offline_compress.ranks.energy import search_ranks
from offline_compress.ranks.layer_sharing import SHARING_SAMPLES, SHARING_TOKENS, search_sharing
from offline_compress.ranks.lorc import condition_report, importance_of, measured_conditions
from offline_compress.ranks.lowered_model import search_greedily
from offline_compress.ranks.storage_choice import choose_storage
from offline_compress.resume import digest, finished_report, made_from
from offline_compress.run.errors import CompressionError
from offline_compress.run.journal import Journal, open_journal
from offline_compress.run.memory import release_freed_memory, resident_memory_bytes
from offline_compress.run.progress import OnEvent, ignore
from offline_compress.run.staging import STATE, check_target, staged_directory, work_directory
from offline_compress.run.stopwatch import lap, measured
from offline_compress.run.workers import working
from palu_vllm.format.checkpoint import attention_prefix
from palu_vllm.format.config import PaluConfig
from palu_vllm.format.layers import layer_shape

SEARCH, WRITE = "search", "write"  # passes over the layers


def compress(
    model: str | Path, out: str | Path, *, calib_samples: int | None = None, on_event: OnEvent = ignore, **options: Any
) -> dict[str, Any]:
    """Writes the compressed form of ``model`` to the new directory ``out``; returns the report.

    ``options`` are the other fields of :class:`CompressOptions`; ``calib_samples`` sets both sample counts. With
    ``dry_run=True`` nothing is written and the estimate is returned. Raises CompressionError or CheckpointError with
    one sentence for input that cannot be compressed; then, as after any other error, nothing is left behind, but the
    work with ``resume=True``.
    """
    if calib_samples is not None:
        options = {"whiten_samples": calib_samples, "fisher_samples": calib_samples} | options
    return run(CompressOptions(model=str(model), out=Path(out), **options), on_event)


def run(options: CompressOptions, on_event: OnEvent = ignore) -> dict[str, Any]:
    """:func:`compress` for options that are already put together."""
    started, baseline = time.monotonic(), resident_memory_bytes()
    source = open_source(options.model)
    plan = make_plan(options, source)
    inputs = [source.directory] + ([Path(options.calib_data)] if options.calib_data else [])
    check_target(options.out, inputs, options.overwrite or options.resume)
    for note in plan.notes:
        on_event({"event": "note", "text": note})
    samples = _samples(plan, on_event)
    if options.dry_run:
        return estimate(plan, samples, baseline)
    origin = made_from(plan, samples)
    if options.resume and (report := finished_report(options.out, origin)):
        shutil.rmtree(work_directory(options.out), ignore_errors=True)
        on_event({"event": "note", "text": f"{options.out} was complete already"})
        return report
    check_target(options.out, inputs, options.overwrite)
    with staged_directory(options.out, options.resume) as staging, working(plan.workers), measured():
        journal = open_journal(staging.parent / STATE, origin)
        written = _write(plan, samples, staging, journal, on_event)
        report = final_report(plan, written, samples, baseline, time.monotonic() - started)
        report |= {"made_from_sha256": digest(origin)} | carried(plan.source, staging)
        write_report(report, staging)
        write_model_card(report, staging)
    return report


def _write(
    plan: Plan, samples: CalibrationSamples | None, staging: Path, journal: Journal, on_event: OnEvent
) -> Written:
    """Everything but report and card."""
    taken_over = {name: len(journal.section(name).layers()) for name in (SEARCH, WRITE)}
    if any(taken_over.values()):
        done = f"{taken_over[SEARCH]} searched and {taken_over[WRITE]} written layers"
        on_event({"event": "note", "text": f"going on behind {done}"})
    journal.remembered("checked", lambda: _check(plan.source, on_event))
    lap()
    plan, sharing = _shared(plan, samples, journal, on_event)
    palu, chosen = _decide(plan, samples, journal, on_event)
    layers = _write_weights(plan, palu, samples, staging, journal.section(WRITE), on_event)
    palu = _with_clip_ratios(palu, layers) if plan.searches_clip else palu
    (staging / "config.json").write_text(json.dumps(output_config(plan, palu), indent=2) + "\n", encoding="utf-8")
    copy_companions(plan.source.directory, staging)
    searched = [entry["seconds"] for entry in journal.section(SEARCH).layers()]
    return Written(palu, layers, chosen | sharing, searched, taken_over)


def _check(source: SourceModel, on_event: OnEvent) -> bool:
    check_finite(source)
    release_freed_memory()
    on_event({"event": "checked", "text": f"{len(source.tensors)} tensors of {source.name} are finite"})
    return True


def _samples(plan: Plan, on_event: OnEvent) -> CalibrationSamples | None:
    if not plan.samples_needed:
        return None
    options, directory = plan.options, plan.source.directory
    samples = load_samples(
        options.calib_data, directory, plan.config.vocab_size, plan.samples_needed, plan.seqlen, options.seed
    )
    on_event({"event": "calibration", "text": samples.label, "wanted": plan.samples_needed})
    return samples


def _shared(
    plan: Plan, samples: CalibrationSamples | None, journal: Journal, on_event: OnEvent
) -> tuple[Plan, dict[str, Any]]:
    """The plan with the layers that share, searched where they were not given, and what the report says of it."""
    options = plan.options
    if not options.share_layers:
        return plan, {}

    def search() -> dict[str, Any]:
        model = whole_model(plan.source, plan.config, plan.device)
        tokens = samples.tokens[:SHARING_SAMPLES, :SHARING_TOKENS].to(plan.device)
        return search_sharing(model, tokens, options.share_layers, options.least_similarity, on_event).report()

    found = journal.remembered("sharing", search)
    release_freed_memory()
    return plan.sharing(tuple(map(tuple, found["pairs"]))), {"layer_sharing": found}


def _decide(
    plan: Plan, samples: CalibrationSamples | None, journal: Journal, on_event: OnEvent
) -> tuple[PaluConfig, dict[str, Any]]:
    """Ranks and value path, with a budget bits and tiers too; and what the report says of the choice."""
    label = samples.label if samples else NO_CALIBRATION
    if plan.searches_energy:
        searched = search_ranks(plan, _passed(plan, samples), journal.section(SEARCH), on_event)
        return plan.palu_config(searched.ranks, label), {"rank_search": searched.report()}
    if plan.options.has_budget:
        chosen = choose_storage(plan, samples.tokens[: plan.options.whiten_samples], journal.section(SEARCH), on_event)
        best = chosen.best
        palu = plan.palu_config((best.rank_k, best.rank_v), label, (best.tiers_k, best.tiers_v))
        return palu, {"budget": chosen.report()}
    if plan.searches_greedily:
        tokens, section = _passed(plan, samples), journal.section(SEARCH)
        found = journal.remembered("greedy", lambda: search_greedily(plan, tokens, section, on_event))
        return plan.palu_config((found["ranks"][0::2], found["ranks"][1::2]), label), {"rank_search": found["search"]}
    if plan.needs_conditions:
        conditions = measured_conditions(plan, journal.section(SEARCH), on_event)
        ranks = plan.ranks(plan.options.search, importance_of(conditions))
        return plan.palu_config(ranks, label), {"rank_search": condition_report(conditions)}
    ranks = plan.uniform_ranks()
    if plan.needs_fisher:
        tokens = samples.tokens[: plan.options.fisher_samples]
        importance = journal.remembered("fisher", lambda: _importance(plan, tokens, on_event))
        ranks = plan.ranks(plan.options.search, importance)
    return plan.palu_config(ranks, label), {}


def _importance(plan: Plan, tokens: torch.Tensor, on_event: OnEvent) -> list[list[float]]:
    model = whole_model(plan.source, plan.config, plan.device).requires_grad_(False)
    weights = [weight.requires_grad_() for weight in key_value_weights(model)]

    def logits_of(row: torch.Tensor) -> torch.Tensor:
        return model(input_ids=row[None], use_cache=False).logits[0]

    def on_sample(number: int) -> None:
        on_event({"event": "fisher", "number": number, "of": len(tokens), "resident_bytes": resident_memory_bytes()})

    try:
        information = fisher_information(logits_of, weights, tokens.to(plan.device), on_sample)
    except ValueError as error:
        raise CompressionError(f"{error}; use --search uniform or other calibration data.") from error
    groups = [plan.key.num_groups, plan.value.num_groups] * plan.geometry.num_layers
    return [group_importance(values, count) for values, count in zip(information, groups, strict=True)]


def _with_clip_ratios(palu: PaluConfig, layers: list[WrittenLayer]) -> PaluConfig:
    outcomes = [layer.outcome for layer in layers]
    clips = {"clip_k": [one.key.clip for one in outcomes], "clip_v": [one.value.clip for one in outcomes]}
    return palu.model_copy(update=clips)


def _write_weights(
    plan: Plan,
    palu: PaluConfig,
    samples: CalibrationSamples | None,
    staging: Path,
    journal: Journal,
    on_event: OnEvent,
) -> list[WrittenLayer]:
    """Writes every tensor but those of the layers in ``journal``."""
    finished = [WrittenLayer.of(entry) for entry in journal.layers()]
    writer = CheckpointWriter(staging, tensor_specs(plan, palu), MAX_SHARD_BYTES, resume=bool(finished))
    for layer, source in enumerate(plan.sources):
        if source < len(finished):  # layers are written with the one that they read
            writer.keep(attention_prefix(layer))
    views = layer_views(plan, _passed(plan, samples), journal.directory, len(finished))
    lap()
    for layer in range(len(finished), plan.geometry.num_layers):
        view, source = next(views), palu.source_layer(layer)
        outcome = _write_layer(view, palu, layer, writer) if source == layer else finished[source].outcome
        writer.flush()
        finished.append(WrittenLayer(outcome, lap()))
        journal.add_layer(layer, finished[-1].entry())
        _tell(plan, palu, layer, finished[-1], on_event)
    for name in plan.source.tensors:
        if not is_replaced(name):
            writer.write(name, plan.source.chunks(name))
    writer.finish()
    return finished


def _passed(plan: Plan, samples: CalibrationSamples | None) -> torch.Tensor | None:
    """The samples ``[samples, seqlen]`` that go through the layers, None for none."""
    return samples.tokens[: plan.passes_samples] if plan.passes_samples else None


def _write_layer(view: LayerView, palu: PaluConfig, layer: int, writer: CheckpointWriter) -> LayerOutcome:
    """Writes the attention of ``layer``, and of those that read it."""
    plan = view.plan
    inputs = view.inputs if plan.searches_clip else None
    formats = palu.key_format(layer, plan.dtype), palu.value_format(layer, plan.dtype)
    return write_attention(
        lambda each: lambda name, chunks: writer.write(attention_prefix(each) + name, chunks),
        view,
        layer,
        [each for each, source in enumerate(plan.sources) if source == layer != each],
        layer_shape(palu, plan.geometry, layer),
        palu.attention_bias,
        Rotations.of(palu, layer),
        ClipSearches(*(ClipSearch(form, inputs) for form in formats)),
        getattr(torch, plan.dtype),
        plan.device,
    )


def _tell(plan: Plan, palu: PaluConfig, layer: int, written: WrittenLayer, on_event: OnEvent) -> None:
    release_freed_memory()
    on_event(
        {
            "event": "layer",
            "number": layer,
            "of": plan.geometry.num_layers,
            "rank_k": palu.rank_k[layer],
            "rank_v": palu.rank_v[layer],
            "relative_error_k": written.outcome.key.error,
            "relative_error_v": written.outcome.value.error,
            "seconds": written.seconds["total"],
            "parts": {name: seconds for name, seconds in written.seconds.items() if name != "total"},
            "resident_bytes": resident_memory_bytes(),
        }
    )
