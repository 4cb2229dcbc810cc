"""One layer of a reference dump as the attention tensors of a checkpoint."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from offline_compress.convert.reference_dump import GroupFactors, ReferenceDump
from offline_compress.factors.fuse_output import constant_output, fuse_output
from offline_compress.model.access import KEY, OUTPUT, QUERY, VALUE, projection
from palu_vllm.format.shape import LayerShape


@dataclass(frozen=True)
class LayerOfDump:
    """Reads and computes when it is asked for tensors; ``dtype`` is that of the output."""

    dump: ReferenceDump
    layer: int
    shape: LayerShape
    dtype: torch.dtype

    def all(self) -> dict[str, Iterable[torch.Tensor]]:
        """``{name below self_attn.: runs of rows}``."""
        tensors = {"q_proj.weight": self._read(QUERY)} | self._keys() | self._values()
        return tensors | self._biases() if self.dump.has_bias else tensors

    def _read(self, name: str, part: str = "weight") -> list[torch.Tensor]:
        return [self.dump.source.tensor(projection(self.layer, name, part))]

    def _keys(self) -> dict[str, Iterable[torch.Tensor]]:
        groups = self.dump.factors(self.layer, KEY)
        if not self.shape.has_k_up:
            return {"k_down.weight": multiplied(groups)}
        down, up = padded(groups, self.shape.rank_k)
        return {"k_down.weight": [down], "k_up": [up]}

    def _values(self) -> dict[str, Iterable[torch.Tensor]]:
        groups, (output,) = self.dump.factors(self.layer, VALUE), self._read(OUTPUT)
        if self.shape.value_path == "uncompressed":
            return {"v_down.weight": multiplied(groups), "o_proj.weight": [output]}
        down, up = padded(groups, self.shape.rank_v)
        if self.shape.value_path == "factored":
            return {"v_down.weight": [down], "v_up": [up], "o_proj.weight": [output]}
        fused = fuse_output(output, up, self.shape.num_kv_heads, self.dtype)
        return {"v_down.weight": [down], "o_proj.weight": fused}

    def _biases(self) -> dict[str, Iterable[torch.Tensor]]:
        """The value bias leaves attention as a constant of the output projection."""
        (output,) = self._read(OUTPUT)
        constant = constant_output(output, self.dump.bias(self.layer, VALUE), self.shape.num_kv_heads)
        if projection(self.layer, OUTPUT, "bias") in self.dump.source.tensors:
            constant = constant + self._read(OUTPUT, "bias")[0]
        return {
            "q_proj.bias": self._read(QUERY, "bias"),
            "k_bias": [self.dump.bias(self.layer, KEY)],
            "o_proj.bias": [constant],
        }


def padded(groups: Sequence[GroupFactors], rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``down [num_groups * rank, hidden]`` and ``up [num_groups, rank, full]``, zeros behind each group's own rank."""
    downs = [pad(group.down, (0, 0, 0, rank - len(group.down))) for group in groups]
    ups = [pad(group.up, (0, 0, 0, rank - len(group.up))) for group in groups]
    return torch.cat(downs), torch.stack(ups)


def multiplied(groups: Sequence[GroupFactors]) -> list[torch.Tensor]:
    """The weight ``[full, hidden]`` of every group."""
    return [group.up.mT @ group.down for group in groups]
