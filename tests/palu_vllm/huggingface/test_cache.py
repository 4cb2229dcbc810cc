"""``PaluCache`` gives any model of transformers what the specification reads, in every way that a cache is used."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from palu_vllm.format.checkpoint import CheckpointError
from palu_vllm.format.codec.file import Codec, save_codec
from palu_vllm.huggingface import PaluCache
from palu_vllm.huggingface.cache import CodedLayer, CodedSlidingLayer
from palu_vllm.kernels.codec.reference import decode_tokens, encode_tokens
from tests.support.codecs.layers import layer_codec
from tests.support.tiny_models import SMALL, build_dense

HEADS = {"kv_heads": 4, "head_dim": 16, "value_dim": 16}
FOUR_BITS = layer_codec(((64, 4),), ((64, 4),), **HEADS)
SIXTEEN_BITS = layer_codec(((64, 16),), ((64, 16),), **HEADS)
PROMPT = torch.randint(3, 250, (1, 24), generator=torch.Generator().manual_seed(2))
GREEDY = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = build_dense(tmp_path_factory.mktemp("llama"), "llama", **SMALL)
    return AutoModelForCausalLM.from_pretrained(directory).eval()


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    found = {}
    for name, layer in (("4", FOUR_BITS), ("16", SIXTEEN_BITS)):
        found[name] = tmp_path_factory.mktemp(name)
        save_codec(found[name], Codec({0: layer, 1: layer}, {"num_layers": 2}))
    return found


def tokens(model, cache, prompt=PROMPT, **options):
    return model.generate(prompt, past_key_values=cache, **(GREEDY | options))


def test_sixteen_bits_are_the_dense_model(model, directories):
    dense = tokens(model, None)
    assert torch.equal(tokens(model, PaluCache.from_pretrained(directories["16"])), dense)
    assert len(set(dense[0, 24:].tolist())) > 4


def test_a_layer_returns_what_its_slots_read_as():
    layer = CodedLayer(FOUR_BITS)
    keys, values = torch.randn(2, 4, 20, 16), torch.randn(2, 4, 20, 16)
    for part in (slice(0, 13), slice(13, 14), slice(14, 20)):
        read = layer.update(keys[:, :, part], values[:, :, part])
    for text in range(2):
        positions = torch.arange(20)
        slots = encode_tokens(FOUR_BITS, keys[text].transpose(0, 1), values[text].transpose(0, 1), positions)
        assert torch.equal(layer.keys[text].transpose(0, 1), slots)
        for got, expected in zip(read, decode_tokens(FOUR_BITS, slots, positions), strict=True):
            torch.testing.assert_close(got[text].transpose(0, 1), expected, rtol=1e-5, atol=1e-5)
    assert layer.get_seq_length() == 20 and layer.keys.dtype == torch.uint8


def test_chunks_are_the_whole_prompt(model, directories):
    def logits(*parts):
        cache = PaluCache.from_pretrained(directories["4"])
        with torch.inference_mode():
            return torch.cat([model(part, past_key_values=cache).logits for part in parts], 1)

    torch.testing.assert_close(logits(PROMPT[:, :7], PROMPT[:, 7:20], PROMPT[:, 20:]), logits(PROMPT))


def test_left_padding_changes_no_token(model, directories):
    short = PROMPT[:, :9]
    padded = torch.cat((torch.zeros(1, 15, dtype=torch.long), short), 1)
    mask = torch.cat((torch.zeros(1, 15, dtype=torch.long), torch.ones_like(short)), 1)
    batch, masks = torch.cat((PROMPT, padded)), torch.cat((torch.ones_like(PROMPT), mask))
    cache = PaluCache.from_pretrained(directories["4"], attention_mask=masks)
    both = tokens(model, cache, batch, attention_mask=masks)
    assert torch.equal(both[:1], tokens(model, PaluCache.from_pretrained(directories["4"])))
    alone = tokens(model, PaluCache.from_pretrained(directories["4"]), short)
    assert torch.equal(both[1, 24:], alone[0, 9:])


def test_beams_follow_their_texts(model, directories):
    exact = PaluCache.from_pretrained(directories["16"], attention_mask=torch.ones_like(PROMPT))
    assert torch.equal(tokens(model, exact, num_beams=3), tokens(model, None, num_beams=3))


def test_crop_takes_the_newest_tokens_away(model, directories):
    cache, whole = (PaluCache.from_pretrained(directories["4"]) for _ in range(2))
    with torch.inference_mode():
        model(PROMPT, past_key_values=cache)
        cache.crop(-8)
        again = model(PROMPT[:, 16:], past_key_values=cache).logits
        expected = model(PROMPT, past_key_values=whole).logits[:, 16:]
    torch.testing.assert_close(again, expected)


def test_a_sliding_layer_keeps_its_window_alone(tmp_path, directories):
    directory = build_dense(tmp_path, "mistral", **(SMALL | {"sliding_window": 10}))
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    kept = PaluCache.from_pretrained(directories["4"], config=model.config)
    assert all(isinstance(layer, CodedSlidingLayer) for layer in kept.layers)
    found = tokens(model, kept)
    assert kept.layers[0].keys.shape[2] == 9
    assert torch.equal(found, tokens(model, PaluCache.from_pretrained(directories["4"])))


def test_layers_without_a_codec_stay_dense(tmp_path, model):
    save_codec(tmp_path, Codec({1: SIXTEEN_BITS}, {"num_layers": 2}))
    cache = PaluCache.from_pretrained(tmp_path)
    assert torch.equal(tokens(model, cache), tokens(model, None))
    assert cache.layers[0].keys.dtype == torch.float32 and cache.layers[1].keys.dtype == torch.uint8


def test_another_model_and_no_codec_are_refused(tmp_path, model):
    save_codec(tmp_path, Codec(dict.fromkeys((0, 1), layer_codec(((64, 4),), ((64, 4),))), {}))
    with pytest.raises(ValueError, match="4 KV heads of 16, the codec is for 2 of 32; calibrate"):
        model(PROMPT, past_key_values=PaluCache.from_pretrained(tmp_path))
    with pytest.raises(CheckpointError, match="cannot be read"):
        PaluCache.from_pretrained(tmp_path / "nothing")
