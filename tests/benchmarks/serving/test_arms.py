"""What the names of arms mean."""

import pytest

from benchmarks.serving.arms import PALU, Arm, compress_flags, parse_arm, parse_arms, why_missing


def test_names(tmp_path, dense, palu):
    model, compressed = dense("llama"), palu("llama")
    arms = parse_arms(["dense", "fp8", "palu", "palu-6x", f"mine={compressed}"], model, tmp_path)
    assert arms == [
        Arm("dense", model),
        Arm("fp8", model, ("--kv-cache-dtype", "fp8")),
        Arm("palu", tmp_path / "palu", PALU),
        Arm("palu-6x", tmp_path / "palu-6x", PALU),
        Arm("mine", compressed, PALU),
    ]
    assert [arm.cache_dtype for arm in arms] == ["auto", "fp8", "auto", "auto", "auto"]


@pytest.mark.parametrize(
    ("name", "flags"),
    [("palu", ()), ("palu-6x", ("--target-compression", "6")), ("palu-2.5x", ("--target-compression", "2.5"))],
)
def test_what_is_compressed_here(name, flags):
    assert compress_flags(name) == flags


@pytest.mark.parametrize("name", ["palu6x", "palu-x", "fp7", ""])
def test_a_name_that_means_nothing(name, tmp_path):
    assert compress_flags(name) is None
    with pytest.raises(ValueError, match="expected dense; a cache dtype of vLLM"):
        parse_arm(name, tmp_path, tmp_path)


def test_a_directory_that_is_no_palu_checkpoint(dense, tmp_path):
    with pytest.raises(ValueError, match="palu"):
        parse_arm(f"mine={dense('llama')}", tmp_path, tmp_path)


def test_an_arm_twice(dense, tmp_path):
    with pytest.raises(ValueError, match="twice"):
        parse_arms(["dense", "dense"], dense("llama"), tmp_path)


def test_the_reason_is_the_first_exception_of_the_log():
    log = """vllm serve ended with 1:
(EngineCore pid=7) ValueError: No common block size for 16.
(APIServer pid=5) RuntimeError: Engine core initialization failed. See root cause above.
  warnings.warn('resource_tracker: There appear to be 2 leaked objects')
"""
    assert why_missing(RuntimeError(log)) == "ValueError: No common block size for 16."
    assert why_missing(RuntimeError("vllm serve did not answer within 300 s:\nloading")) == "loading"
