"""What coding errors a codec has on text like its calibration: what a server holds those of live text against."""

from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

from offline_compress.codec.judge import answers
from offline_compress.codec.tap import tapped
from palu_vllm.format.codec.drift import side_drift
from palu_vllm.format.codec.layer_codec import LayerCodec
from palu_vllm.format.codec.positions import BLOCK


def usual_drift(
    model: PreTrainedModel, samples: torch.Tensor, layers: Mapping[int, LayerCodec]
) -> dict[str, list[float]]:
    """The mean ``side_drift`` of K and of V, by layer, over ``samples [samples, seqlen]`` without their first tokens.

    Layers that nothing is quantized in are left out.
    """
    on_device = {number: layer.to(model.device) for number, layer in layers.items() if _is_quantized(layer)}
    sums = {number: torch.zeros(2, dtype=torch.float64) for number in on_device}

    def see(
        number: int, _query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if number in on_device:
            heads = key[0].transpose(0, 1), value[0].transpose(0, 1)
            sums[number] += layer_drift(on_device[number], *heads).double().cpu()
        return key, value

    with tapped(model, see):
        for row in samples:
            answers(model, row)
    means = {number: (each / len(samples)).tolist() for number, each in sums.items()}
    return {str(number): [round(each, 4) for each in pair] for number, pair in means.items()}


def layer_drift(layer: LayerCodec, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Of a text's ``key`` and ``value [tokens, kv_heads, dim]`` from position 0 on, means over tokens, ``[2]``."""
    centre = layer.key_centre(torch.arange(len(key), device=key.device) // BLOCK)
    found = (
        side_drift(layer.key, key, centre, *layer.key.stored(key, centre)),
        side_drift(layer.value, value, layer.value_mean, *layer.value.stored(value, layer.value_mean)),
    )
    return torch.stack(found)[:, 1:].mean(-1)


def _is_quantized(layer: LayerCodec) -> bool:
    return layer.key.form.is_quantized and layer.value.form.is_quantized
