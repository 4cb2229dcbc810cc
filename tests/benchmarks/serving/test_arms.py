"""What the names of arms mean."""

import pytest

from benchmarks.serving import arms as made_arms
from benchmarks.serving.arms import PALU, Arm, coded, compress_flags, make, parse_arm, parse_arms, why_missing
from palu_vllm.format.codec.file import JSON


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


def test_a_codec_is_made_for_its_arm_or_is_there(tmp_path, dense, monkeypatch):
    model, asked = dense("llama"), []
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / JSON).write_text("{}")
    arms = parse_arms(["codec-4x", f"mine={tmp_path / 'own'}"], model, tmp_path)
    assert arms == [coded("codec-4x", model, tmp_path / "codec-4x"), coded("mine", model, tmp_path / "own")]
    assert '{"palu": {"codec": "%s"}}' % (tmp_path / "own") in arms[1].flags
    assert str(tmp_path) not in " ".join(arms[1].said_flags) and '"codec": "mine"' in arms[1].said_flags[-1]
    monkeypatch.setattr(made_arms.commands, "calibrate", lambda *given, **others: asked.append((given, others)))
    for arm in arms:
        make(arm, model, tmp_path / "text")
    assert asked == [
        ((tmp_path / "codec-4x", "--target-compression", "4"), {"model": model, "calibration": tmp_path / "text"})
    ]


def test_a_directory_that_is_no_palu_checkpoint(dense, tmp_path):
    with pytest.raises(ValueError, match="palu"):
        parse_arm(f"mine={dense('llama')}", tmp_path, tmp_path)


def test_an_arm_twice(dense, tmp_path):
    with pytest.raises(ValueError, match="twice"):
        parse_arms(["dense", "dense"], dense("llama"), tmp_path)


def test_the_reason_is_the_first_exception_of_the_log():
    log = """vllm serve ended with 1:
(APIServer pid=5) WARNING [utils.py:60] Found ulimit of 9. This can cause errors like `OSError: Too many open files`.
(EngineCore pid=7) ValueError: No common block size for 16.
(APIServer pid=5) RuntimeError: Engine core initialization failed. See root cause above.
  warnings.warn('resource_tracker: There appear to be 2 leaked objects')
"""
    assert why_missing(RuntimeError(log)) == "ValueError: No common block size for 16."
    assert why_missing(RuntimeError("vllm serve did not answer within 300 s:\nloading")) == "loading"
