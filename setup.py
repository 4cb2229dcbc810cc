"""Packaging of palu-vllm. vLLM, torch and triton are deliberately not dependencies: the user's vLLM brings them."""

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
HOOK = "palu_vllm_autoload.pth"
VERSION = (HERE / "palu_vllm" / "version.py").read_text(encoding="utf-8")


class BuildWithHook(build_py):
    """Adds the line that lets transformers find the palu model types without an import by the user."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self.copy_file(str(HERE / HOOK), str(Path(self.build_lib) / HOOK))


setup(
    name="palu-vllm",
    version=re.search(r'^__version__ = "(.+)"$', VERSION, re.MULTILINE)[1],
    description="Serve language models whose KV cache is compressed by low-rank projection (Palu) with vLLM",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["palu_vllm*", "offline_compress*"]),
    package_data={"palu_vllm": ["kernels/gpu/tuned/*.json", "kernels/cpu/csrc/**/*.?pp", "server/*.html"]},
    cmdclass={"build_py": BuildWithHook},
    install_requires=["pydantic>=2.12", "safetensors>=0.6", "transformers>=5.16", "numpy", "tqdm"],
    extras_require={
        "finetune": ["peft>=0.21"],
        "serve": ["vllm>=0.32,<0.34"],
        "disaggregated": ["nixl>=1.5"],
        "judge": ["llama-cpp-python>=0.3.36", "matplotlib>=3.9"],
        "load": ["locust>=2.40", "openai>=2", "matplotlib>=3.9"],
        "accuracy": ["lm-eval>=0.4.13", "datasets>=4", "rouge-score>=0.1.2", "matplotlib>=3.9"],
    },
    entry_points={
        "console_scripts": [
            "palu-calibrate=offline_compress.commands.calibrate:main",
            "palu-compress=offline_compress.commands.compress:main",
            "palu-finetune=offline_compress.commands.finetune:main",
            "palu-convert=offline_compress.commands.convert:main",
            "palu-doctor=palu_vllm.server.doctor:main",
        ],
        "vllm.general_plugins": ["palu=palu_vllm:register"],
        "vllm.stat_logger_plugins": ["palu=palu_vllm.server.metrics:PaluStatLogger"],
        "vllm.endpoint_plugins": ["palu=palu_vllm.server.endpoint:PaluEndpoint"],
    },
)
