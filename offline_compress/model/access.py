"""Where each family keeps its projections and how one decoder layer runs. The only module that knows HF's names.

All families name their modules alike (where matrices are joined: once they are apart), so one set of names serves
them. Layers are computed in float32, each
matrix read and widened some rows at a time while it is multiplied: half-precision products are slow or missing on many
CPUs, statistics gain from the precision, and no layer is ever in memory as a whole.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from offline_compress.model.joined_matrices import network
from offline_compress.model.source import SourceModel
from offline_compress.run.errors import CompressionError, reason
from palu_vllm.format.checkpoint import attention_prefix
from palu_vllm.format.kv import KV

EMBEDDING = "model.embed_tokens.weight"
KEY, VALUE, OUTPUT, QUERY = "k_proj", "v_proj", "o_proj", "q_proj"
NORMS = {QUERY: "q_norm", KEY: "k_norm"}  # per head, before rotation; not in every family
# buffers that old checkpoints carry although they follow from the configuration
DERIVED = tuple(f".rotary_emb.{buffer}" for buffer in ("inv_freq", "cos_cached", "sin_cached"))
TIED = "lm_head.weight"
FINAL_NORM = "model.norm.weight"
WIDENED_ROWS = 1024


def projection(layer: int, name: str, part: str = "weight") -> str:
    """The full tensor name of one attention projection, or of a norm, of the dense model."""
    return f"{attention_prefix(layer)}{name}.{part}"


def stored_bytes(source: SourceModel) -> int:
    """Bytes per number of the projections, as they are stored."""
    return source.tensors[projection(0, KEY)].dtype.itemsize


def dense_bytes(source: SourceModel) -> int:
    """Of the largest projection of an attention, as stored: of K and V or of the queries and outputs."""
    geometry = source.geometry
    rows = max(geometry.num_kv_heads, geometry.num_heads) * geometry.head_dim
    return stored_bytes(source) * geometry.hidden_size * rows


def num_parameters(source: SourceModel) -> int:
    """Numbers of all tensors."""
    return sum(tensor.num_bytes // tensor.dtype.itemsize for tensor in source.tensors.values())


def is_replaced(name: str) -> bool:
    """Whether a dense tensor is not copied through: attention is rewritten, derived buffers are dropped."""
    return ".self_attn." in name or name.endswith(DERIVED)


def hf_config(config: Mapping[str, Any]) -> PreTrainedConfig:
    """The transformers configuration of a parsed ``config.json``, of the network whose matrices are apart.

    Raises CompressionError if transformers does not accept it.
    """
    try:
        parsed = network(CONFIG_MAPPING[config["model_type"]].from_dict(copy.deepcopy(dict(config))))
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CompressionError(
            f"config.json is not a valid {config['model_type']} configuration ({reason(error, line=-1)})."
        ) from error
    parsed._attn_implementation = "sdpa"
    return parsed


def skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    """The model without weights, on the meta device."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def check_shapes(source: SourceModel, config: PreTrainedConfig) -> None:
    """Raises CompressionError unless every tensor is there in the shape that ``config.json`` says, and no other."""
    expected = {name: tuple(tensor.shape) for name, tensor in skeleton(config).state_dict().items()}
    for name, shape in expected.items():
        found = source.tensors.get(name)
        if found is None and not (name == TIED and config.tie_word_embeddings):
            raise CompressionError(
                f"{source.directory} lacks tensor {name} of shape {list(shape)}; fetch the model again."
            )
        if found is not None and found.shape != shape:
            raise CompressionError(
                f"{name} has shape {list(found.shape)}, expected {list(shape)} from config.json; "
                "fetch weights and config.json that belong together."
            )
    extra = [name for name in source.tensors if name not in expected and not name.endswith(DERIVED)]
    if extra:
        family = source.config["model_type"]
        raise CompressionError(
            f"{source.directory} has tensor {min(extra)}, unknown to {family}; it cannot be compressed."
        )


class StreamedLinear(nn.Linear):
    """A linear layer that asks for its weight anew whenever it is used, and widens it to the dtype of its input.

    ``row_blocks()`` gives the weight in consecutive runs of rows of any float dtype; ``weight`` itself stays empty.
    """

    row_blocks: Callable[[], Iterable[torch.Tensor]]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output, start = x.new_empty(*x.shape[:-1], self.out_features), 0
        for rows in self.row_blocks():
            part = output.narrow(-1, start, len(rows))
            part.copy_(nn.functional.linear(x, rows.to(x.dtype)))
            start += len(rows)
        return output if self.bias is None else output.add_(self.bias)


class LayerRunner:
    """Runs the decoder layers one after the other."""

    def __init__(self, source: SourceModel, config: PreTrainedConfig, device: torch.device):
        self.source, self.config, self.device = source, config, device
        body = skeleton(config).model
        self.layer_type = type(body.layers[0])
        self.rotary = type(body.rotary_emb)(config).to(device)
        self.norm_type = type(body.norm)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """``[tokens, hidden]`` float32 input of the first layer."""
        return self.source.tensors[EMBEDDING].select(tokens.tolist()).float()

    def load(self, layer: int) -> nn.Module:
        """Decoder layer ``layer``: norms and biases in memory, matrices read while they are multiplied."""
        with torch.device("meta"):
            module = self.layer_type(self.config, layer)
        prefix = f"model.layers.{layer}."
        for name, child in module.named_modules():
            if type(child) is nn.Linear:
                child.__class__, child.row_blocks = StreamedLinear, self._row_blocks(f"{prefix}{name}.weight")
        small = [name for name, value in module.state_dict().items() if value.dim() == 1]
        weights = {name: self.source.tensor(prefix + name).to(self.device) for name in small}
        module.load_state_dict(weights, assign=True, strict=False)
        return module.eval()

    def _row_blocks(self, name: str) -> Callable[[], Iterable[torch.Tensor]]:
        """Reads from the file each time; an accelerator keeps the weight in its own memory."""
        stored = self.source.tensors[name]
        if self.device.type == "cpu":
            return lambda: stored.blocks(WIDENED_ROWS)
        held = stored.read().to(self.device)
        return lambda: held.split(WIDENED_ROWS)

    @torch.no_grad()
    def run(self, module: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """Output of a loaded layer for one sample ``hidden [tokens, hidden]`` float32, same shape."""
        hidden = hidden[None].to(self.device)
        positions = torch.arange(hidden.shape[1], device=self.device)[None]
        output = module(
            hidden,
            attention_mask=self.mask(hidden.shape[1]),
            position_ids=positions,
            position_embeddings=self.rotary(hidden, positions),
        )
        return output[0]

    @torch.no_grad()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[tokens, vocabulary]`` float32 from the stream behind the last layer, ``hidden [tokens, hidden]``."""
        norm = self.norm_type(self.source.geometry.hidden_size, eps=self.config.rms_norm_eps).to(self.device)
        norm.weight = nn.Parameter(self.source.tensor(FINAL_NORM).float().to(self.device))
        name = TIED if TIED in self.source.tensors else EMBEDDING
        normed = norm(hidden.to(self.device))
        return torch.cat([normed @ rows.float().T for rows in self._row_blocks(name)()], dim=-1)

    def mask(self, length: int) -> torch.Tensor | None:
        """None for plain causal attention, else the boolean mask ``[1, 1, length, length]`` of a sliding window."""
        window = getattr(self.config, "sliding_window", None)
        if self.config.model_type != "mistral" or window is None or window >= length:
            return None
        positions = torch.arange(length, device=self.device)
        behind = positions[:, None] - positions
        return ((behind >= 0) & (behind < window))[None, None]


@contextmanager
def with_projection(module: nn.Module, name: str, weight: torch.Tensor) -> Iterator[None]:
    """A loaded layer with ``weight`` in the place of one attention projection's."""
    linear = getattr(module.self_attn, name)
    before, linear.row_blocks = linear.row_blocks, lambda: [weight]
    try:
        yield
    finally:
        linear.row_blocks = before


def kv_input(module: nn.Module) -> nn.Module:
    """The module whose input is what keys and values are projected from."""
    return module.self_attn.k_proj


def after_attention(module: nn.Module) -> nn.Module:
    """The module whose input is the residual stream that attention has just been added to."""
    return module.post_attention_layernorm


def whole_model(source: SourceModel, config: PreTrainedConfig, device: torch.device) -> PreTrainedModel:
    """The complete model in float32."""
    model = skeleton(config)
    weights = {name: source.tensor(name).float().to(device) for name in model.state_dict() if name in source.tensors}
    model.load_state_dict(weights, assign=True, strict=False)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)
    return model.eval()


def key_value_weights(model: PreTrainedModel) -> list[KV[nn.Parameter]]:
    """``k_proj`` and ``v_proj`` of every layer."""
    attentions = [layer.self_attn for layer in model.model.layers]
    return [KV(attention.k_proj.weight, attention.v_proj.weight) for attention in attentions]
