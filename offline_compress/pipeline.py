"""``compress()``: the steps from a dense model to a compressed checkpoint, in order."""

import json
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

from offline_compress.calibration.mixture import files_of
from offline_compress.calibration.samples import CalibrationSamples, load_samples
from offline_compress.checkpoint.carried import carried
from offline_compress.checkpoint.companions import copy_companions
from offline_compress.checkpoint.model_card import write_model_card
from offline_compress.checkpoint.output import output_config, tensor_specs
from offline_compress.checkpoint.palu_config import palu_config
from offline_compress.checkpoint.report import final_report, write_report
from offline_compress.checkpoint.writer import MAX_SHARD_BYTES, CheckpointWriter
from offline_compress.checkpoint.written import Written, WrittenLayer
from offline_compress.estimate import estimate
from offline_compress.factors.layer import AttentionWriter
from offline_compress.factors.layer_views import LayerViews
from offline_compress.model.access import is_replaced, whole_model
from offline_compress.model.source import SourceModel, check_finite, open_source
from offline_compress.options import CompressOptions
from offline_compress.plan import NO_CALIBRATION, Plan, make_plan
from offline_compress.plan_checks import check_data
from offline_compress.ranks.layer_sharing import SHARING_SAMPLES, SHARING_TOKENS, search_sharing
from offline_compress.ranks.rule import Calibration, Rule, samples_of
from offline_compress.ranks.rules import rule_of
from offline_compress.resume import digest, finished_report, made_from
from offline_compress.run.errors import CompressionError
from offline_compress.run.journal import Journal, open_journal
from offline_compress.run.memory import release_freed_memory, resident_memory_bytes
from offline_compress.run.progress import OnEvent, ignore
from offline_compress.run.staging import STATE, check_target, staged_directory, work_directory
from offline_compress.run.workers import working
from palu_vllm.format.checkpoint import attention_prefix
from palu_vllm.format.config import PaluConfig

SEARCH, WRITE = "search", "write"  # passes over the layers
VIEWS = "views"


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
    rule = _rule(plan)
    inputs = [source.directory, *files_of(options.calib_data)]
    check_target(options.out, inputs, options.overwrite or options.resume)
    for note in plan.notes:
        on_event({"event": "note", "text": note})
    samples = _samples(plan, rule, on_event)
    if options.dry_run:
        return estimate(plan, rule, samples, baseline)
    origin = made_from(plan, samples)
    if options.resume and (report := finished_report(options.out, origin)):
        shutil.rmtree(work_directory(options.out), ignore_errors=True)
        on_event({"event": "note", "text": f"{options.out} was complete already"})
        return report
    check_target(options.out, inputs, options.overwrite)
    with staged_directory(options.out, options.resume) as staging, working(plan.workers):
        run = Run(rule, samples, open_journal(staging.parent / STATE, origin), staging, on_event)
        written = _write(plan, run)
        report = final_report(plan, written, samples, baseline, time.monotonic() - started)
        report |= {"made_from_sha256": digest(origin)} | carried(plan.source, staging)
        write_report(report, staging)
        write_model_card(report, staging)
    return report


class Run(NamedTuple):
    """What the steps of one run share."""

    rule: Rule
    samples: CalibrationSamples | None
    journal: Journal
    staging: Path
    tell: OnEvent

    @property
    def label(self) -> str:
        return self.samples.label if self.samples else NO_CALIBRATION


def _rule(plan: Plan) -> Rule:
    """The rule that chooses ranks. Raises CompressionError where options or missing data do not go with it."""
    rule = rule_of(plan)
    if refusal := rule.refusal(plan):
        raise CompressionError(refusal)
    check_data(plan.options, _samples_needed(plan, rule))
    return rule


def _samples_needed(plan: Plan, rule: Rule) -> int:
    return max(samples_of(plan, rule).wanted, SHARING_SAMPLES if plan.options.share_layers else 0)


def _samples(plan: Plan, rule: Rule, on_event: OnEvent) -> CalibrationSamples | None:
    wanted, options = _samples_needed(plan, rule), plan.options
    if not wanted or options.calib_data is None:
        return None
    samples = load_samples(
        options.calib_data,
        plan.source.directory,
        plan.config.vocab_size,
        wanted,
        plan.seqlen,
        options.seed,
        options.calib_field,
    )
    on_event({"event": "calibration", "text": samples.label, "wanted": wanted})
    return samples


def _write(plan: Plan, run: Run) -> Written:
    """Everything but report and card: ranks are chosen by what calibration data gives, then layers are written."""
    journal = run.journal
    taken_over = {name: len(journal.section(name).layers()) for name in (SEARCH, WRITE)}
    if any(taken_over.values()):
        done = f"{taken_over[SEARCH]} searched and {taken_over[WRITE]} written layers"
        run.tell({"event": "note", "text": f"going on behind {done}"})
    journal.remembered("checked", lambda: _check(plan.source, run.tell))
    plan, sharing = _shared(plan, run)
    views = _views(plan, run)
    tokens = run.samples.tokens if run.samples else None
    chosen = run.rule.choose(plan, Calibration(tokens, views), journal.section(SEARCH), run.tell)
    palu = palu_config(plan, chosen.ranks, run.label, chosen.tiers)
    layers = _write_weights(plan, palu, views, run)
    palu = _with_clip_ratios(palu, layers) if plan.searches_clip else palu
    (run.staging / "config.json").write_text(json.dumps(output_config(plan, palu), indent=2) + "\n", encoding="utf-8")
    copy_companions(plan.source.directory, run.staging)
    searched = [entry["seconds"] for entry in journal.section(SEARCH).layers()]
    return Written(palu, layers, chosen.report | sharing, searched, taken_over)


def _check(source: SourceModel, on_event: OnEvent) -> bool:
    check_finite(source)
    release_freed_memory()
    on_event({"event": "checked", "text": f"{len(source.tensors)} tensors of {source.name} are finite"})
    return True


def _shared(plan: Plan, run: Run) -> tuple[Plan, dict[str, Any]]:
    """The plan with the layers that share, searched where they were not given, and what the report says of it."""
    options, samples = plan.options, run.samples
    if not options.share_layers or samples is None:
        return plan, {}

    def search() -> dict[str, Any]:
        model = whole_model(plan.source, plan.config, plan.device)
        tokens = samples.tokens[:SHARING_SAMPLES, :SHARING_TOKENS].to(plan.device)
        return search_sharing(model, tokens, options.share_layers, options.least_similarity, run.tell).report()

    found = run.journal.remembered("sharing", search)
    release_freed_memory()
    return plan.sharing(tuple((layer, source) for layer, source in found["pairs"])), {"layer_sharing": found}


def _views(plan: Plan, run: Run) -> LayerViews:
    """Kept where the rule looks at all of them before the first layer is written."""
    _, passed, kept = samples_of(plan, run.rule)
    tokens = run.samples.tokens[:passed] if run.samples and passed else None
    return LayerViews(plan, tokens, kept, run.journal.section(VIEWS).directory, run.rule.needs(plan).views)


def _with_clip_ratios(palu: PaluConfig, layers: list[WrittenLayer]) -> PaluConfig:
    outcomes = [layer.outcome for layer in layers]
    clips = {"clip_k": [one.key.clip for one in outcomes], "clip_v": [one.value.clip for one in outcomes]}
    return palu.model_copy(update=clips)


def _write_weights(plan: Plan, palu: PaluConfig, views: LayerViews, run: Run) -> list[WrittenLayer]:
    """Writes every tensor but those of the layers that the journal has."""
    journal = run.journal.section(WRITE)
    finished = [WrittenLayer.of(entry) for entry in journal.layers()]
    writer = CheckpointWriter(run.staging, tensor_specs(plan, palu), MAX_SHARD_BYTES, resume=bool(finished))
    for layer, source in enumerate(plan.sources):
        if source < len(finished):  # layers are written with the one that they read
            writer.keep(attention_prefix(layer))
    behind = views.behind(len(finished))

    def write(layer: int) -> dict[str, Any]:
        view, source = next(behind), palu.source_layer(layer)
        if source != layer:
            return {"outcome": journal.layers()[source]["outcome"]}
        outcome = AttentionWriter(plan, palu, view, writer.write).run()
        writer.flush()
        return {"outcome": outcome}

    def told(layer: int, entry: dict[str, Any]) -> None:
        _tell(plan, palu, layer, WrittenLayer.of(entry), run.tell)

    entries = journal.over_layers(plan.num_layers, write, told)
    for name in plan.source.tensors:
        if not is_replaced(name):
            writer.write(name, plan.source.chunks(name))
    writer.finish()
    return [WrittenLayer.of(entry) for entry in entries]


def _tell(plan: Plan, palu: PaluConfig, layer: int, written: WrittenLayer, on_event: OnEvent) -> None:
    on_event(
        {
            "event": "layer",
            "number": layer,
            "of": plan.num_layers,
            "rank_k": palu.rank_k[layer],
            "rank_v": palu.rank_v[layer],
            "relative_error_k": written.outcome.key.error,
            "relative_error_v": written.outcome.value.error,
            "seconds": written.seconds,
            "resident_bytes": resident_memory_bytes(),
        }
    )
