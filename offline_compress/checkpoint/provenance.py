"""A report says where a checkpoint comes from: the program, the model and the calibration data."""

from typing import Any

from offline_compress.model.source import SourceModel
from offline_compress.run.provenance import files_digest, program_facts


def model_digest(source: SourceModel) -> str:
    """Returns a sha256 over ``config.json`` and all weight files."""
    return files_digest({source.directory / "config.json", *(tensor.file for tensor in source.tensors.values())})


def provenance(source: SourceModel, calibration: str, calibration_digest: str | None) -> dict[str, Any]:
    """Returns what ``palu_report.json`` says of an output's origin."""
    return program_facts() | {
        "model": source.name,
        "model_revision": source.revision,
        "model_sha256": model_digest(source),
        "calibration": calibration,
        "calibration_sha256": calibration_digest,
    }
