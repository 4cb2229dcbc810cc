"""A dump of the paper's reference implementation (github.com/shadowpa0327/Palu, ``--dump_huggingface_model``), checked.

Below ``model.layers.{i}.self_attn.{k,v}_proj.`` it has ``VT.weight [sum of ranks, hidden]``, the groups one below the
other, and per group ``U.{g}.weight [full, rank]``, with ``U.{g}.bias [full]`` where the model has biases. ``full`` is
the width of a group's heads. ``head_wise_ranks`` in ``config.json`` gives the rank of every group of every projection.
All else is the dense model. What the reference derives at load (Hadamard rotation, fused ``o_proj``) is not stored.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from offline_compress.model.access import DERIVED, KEY, OUTPUT, QUERY, VALUE, projection
from offline_compress.model.links import refuse_links_outside
from offline_compress.model.source import SourceModel, refuse_pickles, refuse_unsupported, tensors_of, with_dtype
from offline_compress.run.errors import CompressionError
from palu_vllm.format.checkpoint import LM_HEAD, attention_prefix, body_tensors, read_json
from palu_vllm.format.config import AttentionGeometry

# the model types that the reference writes, and whose network each is
MODEL_TYPES = {"palullama": "llama", "palumistral": "mistral", "paluqwen2": "qwen2"}
OWN_KEYS = ("head_wise_ranks", "original_model_name_or_path", "palu_attn_linear_only", "k_bits", "v_bits")

Ranks = tuple[tuple[int, ...], ...]  # [layer][group]


class GroupFactors(NamedTuple):
    """One group of one projection in float64: ``down [rank, hidden]``, ``up [rank, full]``."""

    down: torch.Tensor
    up: torch.Tensor


@dataclass(frozen=True)
class ReferenceDump:
    """A dump whose configuration and tensor shapes were found good; ``source.config`` is that of the dense model."""

    source: SourceModel
    ranks_k: Ranks
    ranks_v: Ranks

    def factors(self, layer: int, name: str) -> list[GroupFactors]:
        """Every group of ``k_proj`` or ``v_proj``, at the ranks of the dump."""
        ranks = (self.ranks_k if name == KEY else self.ranks_v)[layer]
        stacked = self.source.tensor(projection(layer, f"{name}.VT")).double()
        return [
            GroupFactors(down, self.source.tensor(projection(layer, f"{name}.U.{group}")).double().mT)
            for group, down in enumerate(stacked.split(ranks))
        ]

    @property
    def has_bias(self) -> bool:
        return projection(0, f"{KEY}.U.0", "bias") in self.source.tensors

    def bias(self, layer: int, name: str) -> torch.Tensor:
        """``[num_kv_heads * head_dim]``, in the dtype that it is stored in."""
        groups = len((self.ranks_k if name == KEY else self.ranks_v)[layer])
        return torch.cat(
            [self.source.tensor(projection(layer, f"{name}.U.{group}", "bias")) for group in range(groups)]
        )


def open_dump(directory: Path) -> ReferenceDump:
    """Checks a dump: configuration, ranks, the shape of every tensor. No code of it is run and no pickle is read.

    Raises CompressionError or CheckpointError with one sentence.
    """
    if not directory.is_dir():
        raise CompressionError(f"{directory} is not a directory; give a dump of the reference implementation.")
    refuse_links_outside(directory)
    written = read_json(directory / "config.json")
    config = _dense_config(written, directory)
    refuse_pickles(directory)
    try:
        geometry = AttentionGeometry.from_hf_config(config)
        body = body_tensors(config, geometry)
    except ValueError as error:
        raise CompressionError(f"{directory / 'config.json'}: {error}") from error
    listed = written.get("head_wise_ranks")
    ranks_k, ranks_v = (_ranks(listed, geometry, name) for name in (KEY, VALUE))
    name = Path(str(written.get("original_model_name_or_path") or directory.resolve().name))
    source = SourceModel(
        directory, name.name if name.is_absolute() else str(name), None, config, geometry, tensors_of(directory), ""
    )
    dump = ReferenceDump(with_dtype(source), ranks_k, ranks_v)
    _check_shapes(dump, body)
    return dump


def _dense_config(config: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        expected = ", ".join(MODEL_TYPES)
        raise CompressionError(f"{directory} has model type {kind!r}; expected a dump of the reference ({expected}).")
    dense = {key: value for key, value in config.items() if key not in OWN_KEYS} | {"model_type": MODEL_TYPES[kind]}
    if kind == "palullama" and config.get("sliding_window"):
        raise CompressionError(
            f"{directory} says palullama but has a sliding window, which only its Mistral has (the reference goes by "
            "the path of the model); set model_type to palumistral if it is one."
        )
    refuse_unsupported(dense, directory)
    return dense


def _ranks(listed: Any, geometry: AttentionGeometry, name: str) -> Ranks:
    """The ranks of every layer's ``name``. Raises CompressionError where they are not lists of equally many."""
    found = []
    for layer in range(geometry.num_layers):
        module = f"{attention_prefix(layer)}{name}"
        ranks = listed.get(module) if isinstance(listed, Mapping) else None
        if not isinstance(ranks, list) or not ranks or not all(type(rank) is int for rank in ranks):
            raise CompressionError(
                f"head_wise_ranks of config.json has {ranks!r} for {module}; expected the rank of every group."
            )
        found.append(tuple(ranks))
    groups = {len(ranks) for ranks in found}
    if len(groups) > 1 or geometry.num_kv_heads % groups.pop():
        raise CompressionError(
            f"head_wise_ranks of {name} has {sorted({len(ranks) for ranks in found})} groups in a layer; expected the "
            f"same divisor of the {geometry.num_kv_heads} key-value heads in all of them."
        )
    full = geometry.num_kv_heads * geometry.head_dim // len(found[0])
    if not all(1 <= rank <= full for ranks in found for rank in ranks):
        raise CompressionError(f"head_wise_ranks of {name} has a rank outside 1 to {full}, the width of a group.")
    return tuple(found)


def _attention(dump: ReferenceDump) -> dict[str, tuple[int, ...]]:
    """The tensors of every layer's attention and their shapes."""
    geometry, bias = dump.source.geometry, dump.has_bias
    hidden, width = geometry.hidden_size, geometry.num_heads * geometry.head_dim
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(geometry.num_layers):
        for name, ranks in ((KEY, dump.ranks_k[layer]), (VALUE, dump.ranks_v[layer])):
            full = geometry.num_kv_heads * geometry.head_dim // len(ranks)
            shapes[projection(layer, f"{name}.VT")] = (sum(ranks), hidden)
            for group, rank in enumerate(ranks):
                shapes[projection(layer, f"{name}.U.{group}")] = (full, rank)
                if bias:
                    shapes[projection(layer, f"{name}.U.{group}", "bias")] = (full,)
        shapes |= {projection(layer, QUERY): (width, hidden), projection(layer, OUTPUT): (hidden, width)}
        if bias:
            shapes[projection(layer, QUERY, "bias")] = (width,)
    return shapes


def _check_shapes(dump: ReferenceDump, body: Mapping[str, tuple[int, ...]]) -> None:
    """Raises CompressionError unless the tensors are exactly those that ``config.json`` promises."""
    found, directory = dump.source.tensors, dump.source.directory
    optional: dict[str, tuple[int, ...]] = {
        projection(layer, OUTPUT, "bias"): (dump.source.geometry.hidden_size,)
        for layer in range(dump.source.geometry.num_layers)
    }
    if dump.source.config.get("tie_word_embeddings"):
        optional[LM_HEAD] = body[LM_HEAD]
    expected = optional | _attention(dump) | dict(body)
    for name, shape in expected.items():
        if name not in found:
            if name not in optional:
                raise CompressionError(f"{directory} lacks tensor {name} of shape {list(shape)}; dump the model again.")
        elif found[name].shape != shape:
            raise CompressionError(
                f"{name} has shape {list(found[name].shape)}, expected {list(shape)} from config.json; "
                "dump the model again."
            )
    extra = [name for name in found if name not in expected and not name.endswith(DERIVED)]
    if extra:
        raise CompressionError(f"{directory} has tensor {min(extra)}, which no dump has; it cannot be converted.")
