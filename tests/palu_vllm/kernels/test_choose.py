import pytest

from palu_vllm.kernels.choose import codec_attention, codec_path, implementation, kernel_path
from palu_vllm.kernels.codec.reference import CodecAttention
from palu_vllm.kernels.cpu import compiled
from palu_vllm.kernels.cpu.codec_attention import CpuCodecAttention
from palu_vllm.kernels.gpu.codec.attention import TritonCodecAttention


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


def test_the_device_decides_what_serves_codec_slots(monkeypatch):
    monkeypatch.delenv("PALU_KERNELS", raising=False)
    monkeypatch.setattr(compiled, "why_not", lambda: None)
    assert codec_path("cpu") == "C++" and codec_attention("cpu") is CpuCodecAttention
    assert codec_path("cuda") == "triton" and codec_attention("cuda") is TritonCodecAttention
    monkeypatch.setenv("PALU_KERNELS", "torch")
    assert codec_attention("cpu") is codec_attention("cuda") is CodecAttention
    monkeypatch.setenv("PALU_KERNELS", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert codec_path("cpu") == "triton" and codec_attention("cpu") is TritonCodecAttention


def test_without_a_compiler_torch_serves_and_says_why(monkeypatch):
    monkeypatch.delenv("PALU_KERNELS", raising=False)
    monkeypatch.setattr(compiled, "why_not", lambda: "no C++ compiler was found (g++)")
    assert codec_path("cpu") == "torch (no C++ compiler was found (g++))"
    with pytest.warns(UserWarning, match=r"slower than it could, in torch \(no C\+\+ compiler was found"):
        assert codec_attention("cpu") is CodecAttention
