"""What a lost unit of energy really costs: one projection truncated at a time, the model's answers compared.

A probe is a pass of a few calibration samples through the whole model in which a single projection has its low-rank
form. The KL divergence of its next-token distribution from the dense model's, over the energy discarded, is the
projection's sensitivity. All probes advance together, layer by layer: one layer is resident, the streams lie in a file.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from offline_compress.calibration.activations import ActivationFile, activation_file
from offline_compress.model.access import KEY, VALUE, LayerRunner, with_projection
from offline_compress.plan import SENSITIVITY_SAMPLES, Plan

CHUNK_TOKENS = 128


class TruncationProbes:
    """The dense stream and one for each of K0, V0, K1, V1, ... of some samples ``tokens [samples, seqlen]``."""

    def __init__(self, runner: LayerRunner, tokens: torch.Tensor, file: ActivationFile):
        self._runner, self._samples, self._file = runner, range(len(tokens)), file
        self._streams = 1
        for number, row in enumerate(tokens):
            file.write(number, runner.embed(row))

    def add(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Brings all streams behind ``layer``; two new ones part there, with other weights of K or of V."""
        module = self._runner.load(layer)
        older = self._streams
        for name, weight in ((KEY, keys), (VALUE, values)):
            with with_projection(module, name, weight):
                self._advance(module, 0, self._streams)
            self._streams += 1
        for stream in range(older):
            self._advance(module, stream, stream)

    def _advance(self, module: torch.nn.Module, source: int, target: int) -> None:
        for sample in self._samples:
            after = self._runner.run(module, self._read(source, sample))
            self._file.write(target * len(self._samples) + sample, after)

    def _read(self, stream: int, sample: int) -> torch.Tensor:
        return self._file.read(stream * len(self._samples) + sample)

    @torch.no_grad()
    def divergences(self) -> list[float]:
        """KL(dense || probe) in nats per token, for every probe, after the last layer."""
        total = [0.0] * (self._streams - 1)
        for sample in self._samples:
            streams = [self._read(stream, sample).split(CHUNK_TOKENS) for stream in range(self._streams)]
            for dense, *others in zip(*streams, strict=True):
                reference = self._runner.logits(dense).log_softmax(-1)
                for number, hidden in enumerate(others):
                    found = self._runner.logits(hidden).log_softmax(-1)
                    total[number] += (reference.exp() * (reference - found)).sum().item()
        tokens = len(self._samples) * self._read(0, 0).shape[0]
        return [max(value, 0.0) / tokens for value in total]


@contextmanager
def truncation_probes(plan: Plan, tokens: torch.Tensor | None, scratch: Path) -> Iterator[TruncationProbes | None]:
    """Probes of the first samples where ``--search sensitivity`` asks for them; None otherwise."""
    if not plan.measures_sensitivity:
        yield None
        return
    runner = LayerRunner(plan.source, plan.config, plan.device)
    with activation_file(scratch, (tokens.shape[1], plan.geometry.hidden_size)) as file:
        yield TruncationProbes(runner, tokens[:SENSITIVITY_SAMPLES], file)


def sensitivities(divergences: Sequence[float], discarded: Sequence[float]) -> list[float]:
    """KL per unit of discarded energy; 1 where a probe discarded nothing."""
    return [kl / energy if energy > 0 else 1.0 for kl, energy in zip(divergences, discarded, strict=True)]
