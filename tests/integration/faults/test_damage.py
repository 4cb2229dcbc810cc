"""``vllm serve`` of a damaged checkpoint: an exit code that is not 0, and one sentence that says what is wrong.

All other damage is refused by the same checks: ``tests/palu_vllm/format/test_checkpoint.py``,
``startup/test_refusals.py``.
"""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from palu_vllm.format.checkpoint import INDEX, SINGLE, CheckpointError
from tests.support.serving import VLLM, engine, outside

pytestmark = pytest.mark.serving

V_DOWN = "model.layers.1.self_attn.v_down.weight"


def one_nan(model: Path) -> None:
    tensors = load_file(model / SINGLE)
    tensors[V_DOWN][3, 4] = torch.nan
    save_file(tensors, model / SINGLE, {"format": "pt"})


def truncated_shard(model: Path) -> None:
    """Two shards and their index, the second cut off."""
    names = sorted(tensors := load_file(model / SINGLE))
    shards = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for shard, part in shards.items():
        save_file({name: tensors[name] for name in part}, model / shard, {"format": "pt"})
    (model / SINGLE).unlink()
    weight_map = {name: shard for shard, part in shards.items() for name in part}
    (model / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    (model / "two.safetensors").write_bytes((model / "two.safetensors").read_bytes()[:-1000])


def no_weights(model: Path) -> None:
    (model / SINGLE).unlink()


@pytest.fixture
def copy(palu, tmp_path) -> Path:
    return Path(shutil.copytree(palu("llama", (32, 24), (40, 16)), tmp_path / "model"))


def test_a_nan_in_one_layer_is_refused_while_the_engine_loads(copy):
    one_nan(copy)
    with pytest.raises(CheckpointError, match=f"{V_DOWN} has values that are not finite"), engine(copy):
        pass


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "nan": (one_nan, f"{V_DOWN} has values that are not finite"),
    "truncated shard": (truncated_shard, "two.safetensors is not a readable safetensors file"),
    "no weights": (no_weights, "expected safetensors weights"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", DAMAGE)
def test_the_command_ends_with_a_sentence(copy, case):
    damage, sentence = DAMAGE[case]
    damage(copy)
    command = [VLLM, "serve", copy, "--dtype", "float32", "--max-model-len", "512", "--enforce-eager", "--port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, env=outside({}))
    assert ended.returncode != 0
    assert any(sentence in line for line in (ended.stdout + ended.stderr).splitlines()), ended.stderr[-4000:]
