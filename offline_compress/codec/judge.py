"""What a codec costs on text: the divergence of the model's answers from those of the dense model."""

from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

from offline_compress.codec.tap import tapped
from palu_vllm.format.codec.layer_codec import LayerCodec


def answers(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """``log p`` of the next token, float32 ``[seqlen, vocabulary]``, for ``tokens [seqlen]``."""
    with torch.inference_mode():
        logits = model(input_ids=tokens[None].to(model.device), use_cache=False).logits[0]
        return logits.float().log_softmax(-1).cpu()


def coded_answers(model: PreTrainedModel, tokens: torch.Tensor, layers: Mapping[int, LayerCodec]) -> torch.Tensor:
    """The same with the keys and values of ``layers`` as they are read back from the codec."""
    positions = torch.arange(len(tokens), device=model.device)

    def see(
        layer: int, _query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if layer not in layers:
            return key, value
        read = layers[layer].rounded(key[0].transpose(0, 1), value[0].transpose(0, 1), positions)
        key, value = (each.transpose(0, 1)[None].to(key.dtype) for each in read)
        return key, value

    with tapped(model, see):
        return answers(model, tokens)


def divergence(dense: torch.Tensor, coded: torch.Tensor) -> float:
    """The mean over tokens of ``KL(dense || coded)`` in nats; both ``log p [tokens, vocabulary]``."""
    return float((dense.exp() * (dense - coded)).sum(-1).mean())


def codec_divergence(model: PreTrainedModel, samples: torch.Tensor, layers: Mapping[int, LayerCodec]) -> float:
    """The mean over ``samples [samples, seqlen]``, each from position 0 on."""
    on_device = {number: layer.to(model.device) for number, layer in layers.items()}
    found = [divergence(answers(model, each), coded_answers(model, each, on_device)) for each in samples]
    return sum(found) / len(found)
