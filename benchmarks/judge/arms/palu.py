"""palu's own arms: checkpoints that ``palu-compress`` made of the model, in transformers with latents as stored."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.judge.arms.arm import Arm, Heads
from palu_vllm.format.checkpoint import read_config


@dataclass(frozen=True)
class Palu(Arm):
    """Latents are counted in 16 bits where they are not packed, whatever dtype the weights have."""

    label: str
    checkpoint: Path
    simulated = False

    @property
    def name(self) -> str:
        return f"palu_{self.label}"

    def bytes_per_token(self, heads: Heads, context: int) -> float:
        _, config, geometry = read_config(self.checkpoint)
        return config.bytes_per_token(geometry, "float16")

    @contextmanager
    def applied(self, dense: PreTrainedModel) -> Iterator[PreTrainedModel]:
        model = AutoModelForCausalLM.from_pretrained(self.checkpoint, dtype=torch.float32).eval()
        yield model
        del model
        gc.collect()
