"""The model that the repository ships, and its texts."""

from benchmarks.common.provenance import ROOT

MODEL = ROOT / "demo" / "model"
CALIBRATION = ROOT / "demo" / "text" / "calibration.txt"
HELD_OUT = ROOT / "demo" / "text" / "evaluation.txt"
PROMPT = "And it came to pass in those days, that"
CALIBRATION_SAMPLES = 16  # enough for the shipped model
