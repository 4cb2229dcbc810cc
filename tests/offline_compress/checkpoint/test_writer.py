import pytest
import torch
from safetensors.torch import load_file, save_file

from offline_compress.checkpoint.writer import CheckpointWriter, TensorSpec, overwrite, plan_shards
from offline_compress.model.tensor_file import DTYPE_NAMES, stored_tensors
from offline_compress.run.errors import CompressionError
from palu_vllm.format.checkpoint import INDEX, SINGLE, iterate_tensors

TENSORS = {
    "bytes": torch.arange(3, dtype=torch.uint8),
    "half": torch.randn(3, 5).to(torch.bfloat16),
    "scalar": torch.tensor(2.5),
    "wide": torch.randn(4, 2, 3),
}


def specs_of(tensors: dict[str, torch.Tensor]) -> list[TensorSpec]:
    return [TensorSpec(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]


def test_reads_back_what_was_written_in_any_order(tmp_path):
    writer = CheckpointWriter(tmp_path, specs_of(TENSORS), 10**6)
    for name in reversed(TENSORS):
        writer.write(name, [TENSORS[name]])
    writer.finish()
    loaded = load_file(tmp_path / SINGLE)
    assert loaded.keys() == TENSORS.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
def test_every_dtype_is_named_as_safetensors_names_it(tmp_path, dtype):
    tensor = torch.ones(2, 3).to(dtype)
    writer = CheckpointWriter(tmp_path, [TensorSpec("x", dtype, (2, 3))], 10**6)
    writer.write("x", [tensor])
    writer.finish()
    save_file({"x": tensor}, tmp_path / "theirs", metadata={"format": "pt"})
    assert torch.equal(load_file(tmp_path / SINGLE)["x"], tensor)
    assert (tmp_path / SINGLE).stat().st_size == (tmp_path / "theirs").stat().st_size


def test_shards_and_index(tmp_path):
    tensors = {f"t{i}": torch.full((10,), float(i)) for i in range(5)}
    writer = CheckpointWriter(tmp_path, specs_of(tensors), max_shard_bytes=80)
    for name, tensor in tensors.items():
        writer.write(name, tensor.split(3))
    writer.finish()
    assert len(list(tmp_path.glob("model-0000?-of-00003.safetensors"))) == 3
    assert (tmp_path / INDEX).exists()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in iterate_tensors(tmp_path))


def test_a_tensor_above_the_limit_has_a_shard_of_its_own():
    specs = specs_of({"a": torch.zeros(1), "big": torch.zeros(100), "b": torch.zeros(1)})
    assert [[spec.name for spec in shard] for shard in plan_shards(specs, 40).values()] == [["a"], ["big"], ["b"]]


def test_a_forgotten_tensor_is_an_error(tmp_path):
    writer = CheckpointWriter(tmp_path, specs_of(TENSORS), 10**6)
    with pytest.raises(ValueError, match="planned and not written"):
        writer.finish()


def test_a_value_too_large_for_the_dtype_is_an_error(tmp_path):
    writer = CheckpointWriter(tmp_path, [TensorSpec("x", torch.float16, (2,))], 10**6)
    with pytest.raises(CompressionError, match="x has values that torch.float16 cannot hold"):
        writer.write("x", [torch.tensor([1.0, 1e6])])


def test_a_wrong_size_is_an_error(tmp_path):
    writer = CheckpointWriter(tmp_path, specs_of(TENSORS), 10**6)
    with pytest.raises(ValueError, match="has 12 bytes, expected 96"):
        writer.write("wide", [torch.zeros(3)])


@pytest.mark.parametrize("name", ["half", "scalar", "wide"])
def test_one_tensor_of_a_finished_file_is_overwritten(tmp_path, name):
    save_file(TENSORS, tmp_path / SINGLE, metadata={"format": "pt"})
    overwrite(stored_tensors(tmp_path / SINGLE)[name], name, TENSORS[name].double() + 1)
    loaded = load_file(tmp_path / SINGLE)
    assert torch.equal(loaded[name], (TENSORS[name].double() + 1).to(TENSORS[name].dtype))
    assert all(torch.equal(loaded[other], tensor) for other, tensor in TENSORS.items() if other != name)


def test_values_that_do_not_fit_are_not_written(tmp_path):
    save_file({"half": torch.ones(2, 3).half()}, tmp_path / SINGLE, metadata={"format": "pt"})
    before, stored = (tmp_path / SINGLE).read_bytes(), stored_tensors(tmp_path / SINGLE)["half"]
    with pytest.raises(ValueError, match=r"half has shape \[3, 2\], expected \[2, 3\]"):
        overwrite(stored, "half", torch.ones(3, 2))
    with pytest.raises(CompressionError, match="half has values that torch.float16 cannot hold"):
        overwrite(stored, "half", torch.full((2, 3), 1e6))
    assert (tmp_path / SINGLE).read_bytes() == before
