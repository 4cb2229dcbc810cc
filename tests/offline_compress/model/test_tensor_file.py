import pytest
import torch
from safetensors.torch import save_file

from offline_compress.calibration.activations import activation_file
from offline_compress.model.tensor_file import DTYPE_NAMES, stored_tensors
from palu_vllm.format.checkpoint import CheckpointError


@pytest.mark.parametrize("dtype", DTYPE_NAMES)
@pytest.mark.parametrize("shape", [(), (5,), (7, 3), (2, 3, 4), (0, 3), (3, 0)])
def test_reads_what_the_library_wrote(tmp_path, dtype, shape):
    tensor = (torch.randn(shape) * 3).to(dtype)
    save_file({"odd": torch.ones(3, dtype=torch.uint8), "tensor": tensor}, tmp_path / "file", metadata={"format": "pt"})
    stored = stored_tensors(tmp_path / "file")["tensor"]
    assert (stored.dtype, stored.shape, stored.num_bytes) == (dtype, shape, tensor.nbytes)
    assert torch.equal(stored.read(), tensor)
    blocks = list(stored.blocks(2))
    if tensor.numel():
        assert torch.equal(torch.cat(blocks) if shape else blocks[0], tensor)
    if len(shape) > 1 and shape[0]:
        assert torch.equal(stored.select([1, 0, 1]), tensor[[1, 0, 1]])


def test_a_file_that_ends_early_is_an_error(tmp_path):
    save_file({"tensor": torch.ones(100)}, tmp_path / "file")
    stored = stored_tensors(tmp_path / "file")["tensor"]
    (tmp_path / "file").write_bytes((tmp_path / "file").read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="ended while it was read"):
        stored.read()


def test_a_dtype_that_no_model_here_has_is_an_error(tmp_path):
    save_file({"tensor": torch.ones(4).to(torch.float8_e4m3fn)}, tmp_path / "file")
    with pytest.raises(CheckpointError, match="tensor in .* has dtype F8_E4M3; expected one of F64"):
        stored_tensors(tmp_path / "file")


def test_activations_come_back_and_leave_no_file(tmp_path):
    samples = torch.randn(3, 5, 4)
    with pytest.raises(RuntimeError), activation_file(tmp_path, (5, 4)) as file:
        for number in (2, 0, 1):
            file.write(number, samples[number])
        file.write(1, -samples[1])
        assert torch.equal(file.read(0), samples[0])
        assert torch.equal(file.read(1), -samples[1])
        assert torch.equal(file.read(2), samples[2])
        raise RuntimeError
    assert not list(tmp_path.iterdir())
