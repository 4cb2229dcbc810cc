"""What decides the output of a run, so that ``--resume`` goes on with that run and with no other."""

import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from offline_compress.calibration.samples import CalibrationSamples
from offline_compress.checkpoint.report import REPORT
from offline_compress.model.source import SourceModel
from offline_compress.options import CompressOptions
from offline_compress.plan import Plan
from offline_compress.run.provenance import PACKAGES, git_revision, tool_version, versions
from palu_vllm.format.checkpoint import INDEX

# options that change nothing in the output, or whose effect is said in another way
ASIDE = {"model", "out", "overwrite", "dry_run", "resume", "workers", "calib_data", "device"}


def made_from(plan: Plan, samples: CalibrationSamples | None) -> dict[str, Any]:
    """Options, model, calibration data and programs, as JSON gives them back.

    Weight files count by name, size and time of change: to read them all would take as long as much of the work.
    """
    options = {field.name: getattr(plan.options, field.name) for field in fields(CompressOptions)}
    found = {name: value for name, value in options.items() if name not in ASIDE} | {
        "device": str(plan.device),
        "model": _model(plan.source),
        "calibration data": f"{samples.label} {samples.digest}" if samples else None,
        "palu-compress": f"{tool_version()} {git_revision()}",
        "packages": versions(PACKAGES),
    }
    return json.loads(json.dumps(found))


def _model(source: SourceModel) -> dict[str, Any]:
    texts = [path for name in ("config.json", INDEX) if (path := source.directory / name).exists()]
    weights = sorted({tensor.file for tensor in source.tensors.values()})
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in texts} | {
        path.name: f"of {path.stat().st_size} bytes changed at {path.stat().st_mtime_ns}" for path in weights
    }


def digest(found: dict[str, Any]) -> str:
    """sha256 over :func:`made_from`."""
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def finished_report(out: Path, found: dict[str, Any]) -> dict[str, Any] | None:
    """The report in ``out`` if it was made from the same; None if there is another or none."""
    try:
        report = json.loads((out / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return report if isinstance(report, dict) and report.get("made_from_sha256") == digest(found) else None
