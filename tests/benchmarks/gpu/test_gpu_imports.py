"""The first call needs no package that its machine lacks, such as vLLM and pydantic."""

import os
import subprocess
import sys

import pytest

from benchmarks.common.provenance import ROOT

LACKING = ("vllm", "pydantic", "fastapi", "openai", "peft", "datasets", "lm_eval", "locust")
FIRST_CALL = (
    "benchmarks.gpu.environment",
    "benchmarks.gpu.l2_read",
    "benchmarks.gpu.smoke",
    "benchmarks.gpu.host_time",
    "benchmarks.gpu.stub_driver",
    "benchmarks.gpu.profile_target",
    "benchmarks.gpu.summary",
    "benchmarks.kernels.check",
    "benchmarks.latency.kernel_latency",
    "benchmarks.latency.codec_arm",
    "benchmarks.latency.latent_arms",
    "benchmarks.latency.dense_arms",
    "benchmarks.latency.plot",
    "tests.gpu.test_kernels_on_gpu",
    "tests.gpu.test_run_on",
)
IMPORT = """
import importlib, sys

class Lacking:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {lacking}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Lacking())
for name in {names}:
    importlib.import_module(name)
"""


@pytest.mark.parametrize("interpreted", ["0", "1"])
def test_the_first_call_imports(interpreted):
    code = IMPORT.format(lacking=LACKING, names=FIRST_CALL)
    environment = os.environ | {"TRITON_INTERPRET": interpreted, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
