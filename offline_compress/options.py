"""What a user can ask of the compressor, checked."""

import re
from dataclasses import dataclass
from pathlib import Path

from palu_vllm.config import DTYPE_BYTES

OBJECTIVES = ("svd", "whiten")
SEARCHES = ("uniform", "fisher", "fisher_uniform")
VALUE_PATHS = ("fused", "factored", "auto")
DTYPES = ("auto", *DTYPE_BYTES)
DEFAULT_GROUP_SIZE = 4
DEFAULT_SEQLEN = 1024


class CompressionError(ValueError):
    """Input that cannot be compressed. The message is one sentence: what was got, what was expected, what to do."""


@dataclass(frozen=True)
class CompressOptions:
    """The choices of one compression. Raises CompressionError for a value that makes no sense.

    ``group_size`` None is the largest divisor of the number of KV heads up to 4; ``calib_seqlen`` None is 1024 tokens
    or the model's context if that is shorter. ``whiten_samples`` and ``fisher_samples`` are upper limits: a
    calibration text that holds fewer whole samples gives as many as it has.
    """

    model: str
    out: Path
    rank_ratio: float = 0.5
    group_size: int | None = None
    objective: str = "whiten"
    search: str = "fisher_uniform"
    value_path: str = "fused"
    calib_data: str | None = None
    whiten_samples: int = 256
    fisher_samples: int = 32
    calib_seqlen: int | None = None
    seed: int = 42
    dtype: str = "auto"
    device: str = "auto"
    overwrite: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.rank_ratio <= 1:
            raise CompressionError(
                f"rank ratio {self.rank_ratio} is outside (0, 1]; give the fraction of the KV cache to keep, like 0.5."
            )
        self._check_choice("objective", self.objective, OBJECTIVES)
        self._check_choice("search", self.search, SEARCHES)
        self._check_choice("value path", self.value_path, VALUE_PATHS)
        self._check_choice("dtype", self.dtype, DTYPES)
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise CompressionError(f"device {self.device!r} is not supported; expected auto, cpu, cuda or cuda:N.")
        self._check_counts()

    @staticmethod
    def _check_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
        if value not in choices:
            raise CompressionError(f"{what} {value!r} is unknown; expected one of {', '.join(choices)}.")

    def _check_counts(self) -> None:
        counts = {
            "group size": self.group_size,
            "number of whitening samples": self.whiten_samples,
            "number of Fisher samples": self.fisher_samples,
        }
        for what, value in counts.items():
            if value is not None and value < 1:
                raise CompressionError(f"{what} is {value}; expected at least 1.")
        if self.calib_seqlen is not None and self.calib_seqlen < 2:
            raise CompressionError(f"calibration samples of {self.calib_seqlen} tokens are too short; give at least 2.")
        if self.seed < 0:
            raise CompressionError(f"seed {self.seed} is negative; expected 0 or more.")
