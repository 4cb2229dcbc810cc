"""A checkpoint that brings code is loaded without it: neither transformers nor vLLM runs any of its files."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM
from vllm.engine.arg_utils import EngineArgs

import palu_vllm
from palu_vllm.format.checkpoint import CheckpointError, check_shapes

TRAP = "import pathlib\npathlib.Path({marker!r}).touch()\nclass Trap: ...\n"
MAPPED = {"AutoConfig": "trap.Trap", "AutoModelForCausalLM": "trap.Trap", "AutoTokenizer": ["trap.Trap", "trap.Trap"]}


class Bomb:
    """Touches a file where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.touch, (self.marker,)


@pytest.fixture
def marker(tmp_path) -> Path:
    return tmp_path / "ran"


@pytest.fixture
def trapped(palu, tmp_path, marker) -> Path:
    """A palu checkpoint with code beside its weights that configuration and tokenizer ask for."""
    palu_vllm.register()
    directory = shutil.copytree(palu(), tmp_path / "model")
    (directory / "trap.py").write_text(TRAP.format(marker=str(marker)))
    for name in ("config.json", "tokenizer_config.json"):
        path = directory / name
        written = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(written | {"auto_map": MAPPED}))
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(marker)))
    return directory


def test_the_trap_works(trapped, marker):
    exec((trapped / "trap.py").read_text())
    assert marker.exists()
    marker.unlink()
    pickle.loads((trapped / "pytorch_model.bin").read_bytes())
    assert marker.exists()


def test_transformers_runs_none_of_it(trapped, marker):
    assert type(AutoConfig.from_pretrained(trapped)).__name__ == "PaluLlamaConfig"
    assert type(AutoModelForCausalLM.from_pretrained(trapped)).__name__ == "PaluLlamaForCausalLM"
    assert not marker.exists()


def test_vllm_runs_none_of_it_before_it_loads(trapped, marker):
    config = EngineArgs(str(trapped), dtype="float32").create_engine_config()
    assert config.model_config.trust_remote_code is False
    assert not marker.exists()


def test_pickled_weights_alone_are_refused_unread(trapped, marker):
    for file in trapped.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(CheckpointError):
        check_shapes(trapped)
    assert not marker.exists()
