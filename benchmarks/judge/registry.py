"""All arms of the judge: the rivals, and what a folder has of ours."""

from pathlib import Path

from benchmarks.judge.arms.arm import Arm, Dense
from benchmarks.judge.arms.codec import CodecArm
from benchmarks.judge.arms.floats import DTYPES, Fp8, Nvfp4
from benchmarks.judge.arms.kivi import Kivi
from benchmarks.judge.arms.kvarn import KVarN
from benchmarks.judge.arms.palu import Palu
from benchmarks.judge.arms.per_token_head import PerTokenHead
from benchmarks.judge.arms.turboquant import TurboQuant
from palu_vllm.format.codec.file import JSON

RIVALS: tuple[Arm, ...] = (
    *map(Fp8, DTYPES),
    PerTokenHead(8),
    PerTokenHead(4),
    Nvfp4(),
    TurboQuant("4bit_nc", 4, 4),
    TurboQuant("k3v4_nc", 3, 4),
    TurboQuant("3bit_nc", 3, 3),
    KVarN(4, 4),
    KVarN(4, 2),
    KVarN(4, 4, tile=64),
    KVarN(4, 2, tile=64),
    Kivi(4),
    Kivi(2),
)


def arms(made: Path) -> list[Arm]:
    """The dense model, the rivals, and the checkpoints and codecs in ``made``, named as their directories."""
    palu = [Palu(path.parent.name, path.parent) for path in sorted(made.glob("*/palu_report.json"))]
    codecs = [CodecArm(path.parent.name, path.parent) for path in sorted(made.glob(f"*/{JSON}"))]
    return [Dense(), *RIVALS, *palu, *codecs]
