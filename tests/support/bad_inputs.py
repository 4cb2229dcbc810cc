"""Input that checks must refuse, as a table; ``python -O -m tests.support.bad_inputs PALU DENSE WORK`` prints what was
said.

Nothing here asserts anything, so that it does the same with and without assertions.
"""

import contextlib
import io
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import tests.conftest  # noqa: F401  # the environment, before vLLM
from palu_vllm.format.checkpoint import SINGLE, check_finite, check_shapes, iterate_tensors, read_config, read_json

K_UP = "model.layers.1.self_attn.k_up"
NORM = "model.norm.weight"


@dataclass(frozen=True)
class Case:
    """``damage`` is done to a copy of a palu or dense checkpoint; ``check`` must raise ``kind`` with ``words``."""

    check: Callable[[Path], Any]
    kind: str
    words: str
    damage: Callable[[Path], Any] = lambda model: None
    dense: bool = False


def section(**changes: Any) -> Callable[[Path], None]:
    """Changes of ``palu_config``."""
    return lambda model: config(palu_config=read_json(model / "config.json")["palu_config"] | changes)(model)


def config(**changes: Any) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        (model / "config.json").write_text(json.dumps(read_json(model / "config.json") | changes))

    return change


def tensor(name: str, value: torch.Tensor | None) -> Callable[[Path], None]:
    """Replaces a tensor of the file, or takes it away."""

    def change(model: Path) -> None:
        tensors = load_file(model / SINGLE) | {name: value}
        save_file({key: kept for key, kept in tensors.items() if kept is not None}, model / SINGLE, {"format": "pt"})

    return change


def truncate(model: Path) -> None:
    (model / SINGLE).write_bytes((model / SINGLE).read_bytes()[:-1])


def load(model: Path) -> None:
    """As vLLM loads: every tensor through the checks."""
    from palu_vllm.loading.checked import checked

    for _ in checked(iterate_tensors(model), read_json(model / "config.json")):
        pass


def start(**options: Any) -> Callable[[Path], Any]:
    """As a server starts, to the end of its configuration."""

    def check(model: Path) -> Any:
        from vllm.engine.arg_utils import EngineArgs

        return EngineArgs(str(model), dtype="float32", **options).create_engine_config()

    return check


class ExitError(Exception):
    """A command ended with an exit code other than 0."""


def command(name: str, *flags: str) -> Callable[[Path], None]:
    """A command line; raises ``ExitError`` with the last line that it printed unless it ends with 0."""

    def check(model: Path) -> None:
        module = __import__(name, fromlist=["main"])
        printed = io.StringIO()
        with contextlib.redirect_stderr(printed):
            try:
                code = module.main([str(model), str(model.parent / "out"), *flags])
            except SystemExit as ended:
                code = ended.code
        if code:
            raise ExitError(printed.getvalue().strip().splitlines()[-1])

    return check


COMPRESS, CONVERT = "offline_compress.commands.compress", "offline_compress.commands.convert"
SVD = ("--objective", "svd", "--search", "uniform")
CASES: dict[str, Case] = {
    "rank 0": Case(read_config, "CheckpointError", "a rank is below 1", section(rank_k=[0, 32])),
    "rank above full": Case(read_config, "CheckpointError", "above the full rank", section(rank_k=[999, 32])),
    "a rank too few": Case(read_config, "CheckpointError", "expected equal", section(rank_k=[32])),
    "layers": Case(read_config, "CheckpointError", "the model has 3", config(num_hidden_layers=3)),
    "group size": Case(read_config, "CheckpointError", "does not divide", section(group_size_k=3, group_size_v=3)),
    "groups": Case(read_config, "CheckpointError", "divides the other", section(group_size_k=3)),
    "unknown key": Case(read_config, "CheckpointError", "not valid at surprise", section(surprise=1)),
    "rank as text": Case(read_config, "CheckpointError", "not valid at rank_k.0", section(rank_k=["32", 32])),
    "value path": Case(read_config, "CheckpointError", "not valid at value_path", section(value_path="other")),
    "tiers": Case(read_config, "CheckpointError", "add up to 1", section(tiers_k=[{"share": 0.5, "bits": 4}])),
    "latent groups": Case(read_config, "CheckpointError", "latent group size 7", section(latent_group_size=7)),
    "head size": Case(read_config, "CheckpointError", "not an even number", config(head_dim=31)),
    "missing tensor": Case(check_shapes, "CheckpointError", f"lacks tensor {K_UP}", tensor(K_UP, None)),
    "shape": Case(check_shapes, "CheckpointError", f"{K_UP} has shape [2]", tensor(K_UP, torch.zeros(2))),
    "stowaway": Case(check_shapes, "CheckpointError", "unexpected tensor x", tensor("x", torch.zeros(2))),
    "truncated": Case(check_shapes, "CheckpointError", "not a readable safetensors file", truncate),
    "values": Case(check_finite, "CheckpointError", "not finite", tensor(K_UP, torch.full((2,), torch.nan))),
    "load shape": Case(load, "CheckpointError", f"{K_UP} has shape [2]", tensor(K_UP, torch.zeros(2))),
    "load stowaway": Case(load, "CheckpointError", "unexpected tensor x", tensor("x", torch.zeros(2))),
    "load values": Case(load, "CheckpointError", "not finite", tensor(K_UP, torch.full((2, 32, 64), torch.inf))),
    "start truncated": Case(start(), "StartError", "not a readable safetensors file", truncate),
    "start rank": Case(start(), "StartError", "above the full rank", section(rank_v=[999, 32])),
    "start backend": Case(start(attention_backend="cpu_attn"), "StartError", "only --attention-backend palu serves"),
    "start dense": Case(start(attention_backend="palu"), "StartError", "nor has a codec", dense=True),
    "start cut": Case(start(tensor_parallel_size=4), "StartError", "would cut a group"),
    "start bits": Case(start(additional_config={"palu": {"latent_bits": 5}}), "StartError", "bits other than"),
    "compress ratio": Case(command(COMPRESS, *SVD, "--rank-ratio", "7"), "ExitError", "rank", dense=True),
    "compress group": Case(command(COMPRESS, *SVD, "--group-size", "3"), "ExitError", "group", dense=True),
    "compress twice": Case(command(COMPRESS, *SVD), "ExitError", "already compressed"),
    "compress values": Case(
        command(COMPRESS, *SVD), "ExitError", "not finite", tensor(NORM, torch.full((256,), torch.nan)), dense=True
    ),
    "convert dense": Case(command(CONVERT), "ExitError", "expected a dump of the reference", dense=True),
}


def answers(palu: str, dense: str, work: str) -> dict[str, Any]:
    """``{case: [kind, sentence]}`` of every case, without the path of ``work``; kind is None where none was refused."""
    said: dict[str, Any] = {"assertions": "on" if __debug__ else "off"}
    for name, case in CASES.items():
        model = Path(work) / name.replace(" ", "-") / "model"
        shutil.copytree(dense if case.dense else palu, model)
        case.damage(model)
        try:
            case.check(model)
            said[name] = [None, "accepted"]
        except Exception as error:  # noqa: BLE001  # whatever comes is the answer
            said[name] = [type(error).__name__, str(error).replace(work, "WORK")]
    return said


if __name__ == "__main__":
    print(json.dumps(answers(*sys.argv[1:])))
