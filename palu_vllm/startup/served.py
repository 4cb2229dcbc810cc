"""What a server serves: the model's ``config.json`` and the server's own settings, parsed into one frozen object.

Every process of a server has the same ``VllmConfig`` and asks ``served_config``, which parses it once in each. Nothing
is written back: the configuration of the model stays that of the checkpoint's files.
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from vllm.config import VllmConfig

from palu_vllm.attention_backend.settings import palu_settings
from palu_vllm.format.config import AttentionGeometry, PaluConfig
from palu_vllm.format.latent_format import SlotFormat
from palu_vllm.format.layers import layer_shape
from palu_vllm.format.shape import LayerShape
from palu_vllm.registry import ARCHITECTURES
from palu_vllm.startup.settings import STREAMING_LLM, changed_fields, checked_settings
from palu_vllm.startup.streaming_llm import StreamingLLM


@dataclass(frozen=True)
class ServedConfig:
    """A palu model as one server serves it."""

    palu: PaluConfig  # with the server's settings
    files: PaluConfig  # as the tensors of the checkpoint are
    geometry: AttentionGeometry
    streaming: StreamingLLM | None
    dtype: str  # of the model, and of latents that are not packed, like ``bfloat16``
    is_quantized: bool  # whether weights of the files are

    @classmethod
    def of(cls, config: Mapping[str, Any], settings: Any, dtype: str) -> Self:
        """``config`` is a parsed ``config.json``, ``settings`` what ``--additional-config`` has for palu.

        Raises ValueError with one sentence for either.
        """
        files, geometry = PaluConfig.from_hf_config(config), AttentionGeometry.from_hf_config(config)
        asked = checked_settings(settings)
        palu = files
        if changes := changed_fields(asked, files, geometry):
            palu = PaluConfig.from_hf_config({**config, "palu_config": files.model_dump() | changes})
        streaming = StreamingLLM.asked(asked[STREAMING_LLM]) if STREAMING_LLM in asked else None
        return cls(palu, files, geometry, streaming, dtype, bool(config.get("quantization_config")))

    @property
    def layers(self) -> list[LayerShape]:
        return [self.layer(index) for index in range(self.geometry.num_layers)]

    def layer(self, index: int) -> LayerShape:
        return layer_shape(self.palu, self.geometry, index)

    def slot(self, layer: int) -> SlotFormat | None:
        """How the cache packs the latents of a layer, None where it holds numbers."""
        return self.palu.slot_format(layer, self.dtype)

    @property
    def is_mixed_at_load(self) -> bool:
        return self.palu.hadamard and not self.files.hadamard

    @property
    def is_cut_at_load(self) -> bool:
        """Whether fewer latents are served than the files have."""
        return (self.palu.rank_k, self.palu.rank_v) != (self.files.rank_k, self.files.rank_v)


def serves_palu(vllm_config: VllmConfig) -> bool:
    """Whether the model of a server is a palu model."""
    model = vllm_config.model_config
    return model is not None and not ARCHITECTURES.isdisjoint(model.architectures)


def served_config(vllm_config: VllmConfig) -> ServedConfig:
    """Of a server with a palu model. Raises ValueError with one sentence where model or settings make no sense."""
    model = vllm_config.model_config
    texts = (json.dumps(each, default=str) for each in (model.hf_config.to_dict(), palu_settings(vllm_config)))
    return _parsed(*texts, str(model.dtype).removeprefix("torch."))


@functools.lru_cache(maxsize=4)
def _parsed(config: str, settings: str, dtype: str) -> ServedConfig:
    return ServedConfig.of(json.loads(config), json.loads(settings), dtype)
