"""All arms of the judge: the rivals, and palu's checkpoints in a folder."""

from pathlib import Path

from benchmarks.judge.arms.arm import Arm, Dense
from benchmarks.judge.arms.floats import DTYPES, Fp8, Nvfp4
from benchmarks.judge.arms.kivi import Kivi
from benchmarks.judge.arms.kvarn import KVarN
from benchmarks.judge.arms.palu import Palu
from benchmarks.judge.arms.per_token_head import PerTokenHead
from benchmarks.judge.arms.turboquant import TurboQuant

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


def arms(checkpoints: Path | None) -> list[Arm]:
    """The dense model, the rivals, and each directory of ``checkpoints`` that ``palu-compress`` made."""
    made = sorted(checkpoints.glob("*/palu_report.json")) if checkpoints else []
    return [Dense(), *RIVALS, *(Palu(report.parent.name, report.parent) for report in made)]
