import pytest

from palu_vllm.kernels.choose import codec_attention, implementation, kernel_path


@pytest.mark.parametrize(("device", "expected"), [("cpu", "torch"), ("cuda", "triton")])
def test_the_device_decides(device, expected, monkeypatch):
    monkeypatch.delenv("PALU_KERNELS", raising=False)
    assert kernel_path(device) == expected


@pytest.mark.parametrize("path", ["torch", "triton"])
def test_the_environment_decides_first(path, monkeypatch):
    monkeypatch.setenv("PALU_KERNELS", path)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert kernel_path("cpu") == kernel_path("cuda") == path


def test_unknown_name(monkeypatch):
    monkeypatch.setenv("PALU_KERNELS", "Triton")
    with pytest.raises(ValueError, match=r"PALU_KERNELS=Triton is not known; expected torch or triton\."):
        kernel_path("cpu")


def test_triton_on_a_cpu_needs_its_interpreter(monkeypatch):
    monkeypatch.setenv("PALU_KERNELS", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="set TRITON_INTERPRET=1 too"):
        kernel_path("cpu")
    assert kernel_path("cuda") == "triton"


@pytest.mark.parametrize("path", ["torch", "triton"])
def test_every_path_has_store_and_attend(path):
    found = implementation(path)
    assert callable(found.store) and callable(found.attend)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_codec_slots_are_served_on_every_device(device):
    found = codec_attention(device)
    assert callable(found.store) and callable(found.attend)
