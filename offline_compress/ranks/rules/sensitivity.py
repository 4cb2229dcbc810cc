"""``--search sensitivity`` gives ranks by what a lost unit of energy really costs.

A few calibration samples pass through the whole model, each time with a single projection truncated. The KL divergence
of its next-token distribution from the dense model's, over the energy discarded, is the projection's sensitivity; the
rule of ``energy.py`` then chooses by energies times sensitivities. All passes advance together, layer by layer: one
layer is resident, the streams lie in a file.
"""

import torch

from offline_compress.calibration.activations import ActivationFile, activation_file
from offline_compress.factors.head_order import restored
from offline_compress.factors.layer_views import LayerView
from offline_compress.model.access import KEY, VALUE, LayerRunner, with_projection
from offline_compress.plan import Plan
from offline_compress.ranks.allocation import uniform_ranks
from offline_compress.ranks.rule import Calibration, Chosen, Needs
from offline_compress.ranks.rules.energy import Energy, energies_of, least_energy, told
from offline_compress.run.journal import Journal
from offline_compress.run.memory import release_freed_memory
from offline_compress.run.progress import OnEvent
from palu_vllm.format.kv import KV, paired

SAMPLES = 4  # that pass through the whole model for every projection
FLOAT32 = 4
CHUNK_TOKENS = 128


class TruncatedStreams:
    """The dense stream of samples ``tokens [samples, seqlen]``, and one for K and one for V of every layer."""

    def __init__(self, runner: LayerRunner, tokens: torch.Tensor, file: ActivationFile):
        self._runner, self._samples, self._file = runner, range(len(tokens)), file
        self._streams = 1
        for number, row in enumerate(tokens):
            file.write(number, runner.embed(row))

    def add(self, layer: int, weights: KV[torch.Tensor]) -> None:
        """Brings all streams behind ``layer``; two new ones part there, with other weights of K or of V."""
        module = self._runner.load(layer)
        older = self._streams
        for name, weight in zip((KEY, VALUE), weights, strict=True):
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
    def divergences(self) -> list[KV[float]]:
        """KL(dense || truncated) in nats per token of every layer's K and V, after the last layer."""
        total = [0.0] * (self._streams - 1)
        for sample in self._samples:
            streams = [self._read(stream, sample).split(CHUNK_TOKENS) for stream in range(self._streams)]
            for dense, *others in zip(*streams, strict=True):
                reference = self._runner.logits(dense).log_softmax(-1)
                for number, hidden in enumerate(others):
                    found = self._runner.logits(hidden).log_softmax(-1)
                    total[number] += (reference.exp() * (reference - found)).sum().item()
        tokens = len(self._samples) * self._read(0, 0).shape[0]
        return paired([max(value, 0.0) / tokens for value in total])


def truncated(view: LayerView, ranks: KV[int]) -> KV[torch.Tensor]:
    """K and V of a layer at these ranks, heads in the model's own order, float32."""
    return KV(_truncated(view, KEY, ranks), _truncated(view, VALUE, ranks))


def _truncated(view: LayerView, name: str, ranks: KV[int]) -> torch.Tensor:
    objective, rank = (view.objectives.key, ranks.key) if name == KEY else (view.objectives.value, ranks.value)
    factors = objective.factors(view.weight(name), rank)
    rebuilt = (factors.up.mT @ factors.down.unflatten(0, (len(factors.up), -1))).flatten(0, 1)
    return restored(rebuilt.float(), view.order)


def sensitivity(divergence: float, discarded: float) -> float:
    """KL per unit of discarded energy; 1 where nothing was discarded."""
    return divergence / discarded if discarded > 0 else 1.0


class Sensitivity(Energy):
    """Energies as in the rule of that name, and a pass for every projection beside them."""

    def needs(self, plan: Plan) -> Needs:
        return Needs(samples=SAMPLES, views=True)

    def disk_bytes(self, plan: Plan) -> int:
        """A stream for every projection and the dense one."""
        streams = 1 + 2 * plan.num_layers
        return FLOAT32 * SAMPLES * streams * plan.seqlen * plan.geometry.hidden_size

    def choose(self, plan: Plan, data: Calibration, journal: Journal, tell: OnEvent) -> Chosen:
        found = journal.remembered("sensitivity", lambda: _measured(plan, data, journal, tell))
        return least_energy(plan, found["energies"], [KV(*layer) for layer in found["sensitivities"]])


def _measured(plan: Plan, data: Calibration, journal: Journal, tell: OnEvent) -> dict[str, list]:
    """Energies and sensitivities of K and V of every layer; begins again where a run was killed."""
    ranks, energies, views = uniform_ranks(plan), [], data.views.behind(0)
    runner, tokens = LayerRunner(plan.source, plan.config, plan.device), data.first(SAMPLES)
    with activation_file(journal.directory, (tokens.shape[1], plan.geometry.hidden_size)) as file:
        streams = TruncatedStreams(runner, tokens, file)
        for layer in range(plan.num_layers):
            view = next(views)
            streams.add(layer, truncated(view, ranks[layer]))
            energies.append(energies_of(view))
            del view  # before the next layer runs
            release_freed_memory()
            told(plan, layer, tell)
        divergences = streams.divergences()
    found = [
        KV(sensitivity(kl.key, energy.key[rank.key].item()), sensitivity(kl.value, energy.value[rank.value].item()))
        for kl, energy, rank in zip(divergences, energies, ranks, strict=True)
    ]
    return {"energies": [[side.tolist() for side in layer] for layer in energies], "sensitivities": found}


RULE = Sensitivity()
