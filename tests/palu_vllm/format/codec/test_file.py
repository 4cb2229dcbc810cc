"""A codec is read as it was written; what is damaged is refused in one sentence."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from palu_vllm.format.checkpoint import CheckpointError
from palu_vllm.format.codec.file import JSON, TENSORS, Codec, load_codec, save_codec
from tests.support.codecs.layers import layer_codec


@pytest.fixture
def written(tmp_path):
    layers = {0: layer_codec(((16, 8), (48, 3)), ((64, 4),)), 3: layer_codec(((32, 4),), ((32, 2),), groups=2)}
    codec = Codec(layers, {"digest": "abc", "name": "tiny"}, {"context": 64})
    save_codec(tmp_path, codec)
    return tmp_path, codec


def test_is_read_as_it_was_written(written):
    directory, codec = written
    read = load_codec(directory)
    assert read.layers.keys() == codec.layers.keys()
    assert (read.model, read.facts) == (codec.model, codec.facts)
    for number, layer in codec.layers.items():
        assert read.layers[number].slot == layer.slot
        torch.testing.assert_close(read.layers[number].key.decoder, layer.key.decoder, rtol=0, atol=0)
        torch.testing.assert_close(read.layers[number].centre_sin, layer.centre_sin, rtol=0, atol=0)
    assert read.bytes_per_token == codec.bytes_per_token == (4 + 16 + 18 + 32 + 2) + 2 * (4 + 16 + 8)


def cut(directory):
    (directory / TENSORS).write_bytes((directory / TENSORS).read_bytes()[:-9])


def no_json(directory):
    (directory / JSON).unlink()


def other_version(directory):
    about = json.loads((directory / JSON).read_text())
    (directory / JSON).write_text(json.dumps(about | {"format": 99}))


def unknown_bits(directory):
    about = json.loads((directory / JSON).read_text())
    about["layers"]["0"]["key"] = [[64, 6]]
    (directory / JSON).write_text(json.dumps(about))


def changed(name, change):
    def damage(directory):
        tensors = load_file(directory / TENSORS)
        tensors[name] = change(tensors[name])
        save_file(tensors, directory / TENSORS)

    return damage


DAMAGES = {
    "cut off": cut,
    "no json": no_json,
    "version": other_version,
    "bits": unknown_bits,
    "shape": changed("layers.3.key.sink", lambda tensor: tensor[:1].clone()),
    "not finite": changed("layers.3.value.decoder", lambda tensor: tensor * float("nan")),
    "frequency": changed("layers.0.frequency_of", lambda tensor: tensor + 99),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_refused_in_one_sentence(written, name):
    DAMAGES[name](written[0])
    with pytest.raises(CheckpointError) as error:
        load_codec(written[0])
    assert str(error.value).endswith(".") and "\n" not in str(error.value)
