"""What a user can ask of the compressor, checked."""

import re
from dataclasses import dataclass
from pathlib import Path

from offline_compress.run.errors import CompressionError
from palu_vllm.format.config import DTYPE_BYTES
from palu_vllm.format.latent_format import TIER_STEP, UNQUANTIZED, TierFractions, cut_into_scale_groups, cut_into_tiers

OBJECTIVES = ("svd", "whiten", "weighted")
FISHER_SEARCHES = ("fisher", "fisher_uniform")
ENERGY_SEARCHES = ("energy", "sensitivity")
CONDITION_SEARCH = "lorc"
GREEDY_SEARCH = "matryoshka"
SEARCHES = ("uniform", *FISHER_SEARCHES, *ENERGY_SEARCHES, CONDITION_SEARCH, GREEDY_SEARCH)
VALUE_PATHS = ("fused", "factored", "auto")
DTYPES = ("auto", *DTYPE_BYTES)
DEFAULT_GROUP_SIZE = 4
DEFAULT_RATIO = 0.5
DEFAULT_SEQLEN = 1024
DEFAULT_SHARE_THRESHOLD = 0.5
LayerPairs = tuple[tuple[int, int], ...]  # (layer, the earlier layer whose cache it reads)


@dataclass(frozen=True)
class CompressOptions:
    """The choices of one compression. Raises CompressionError for a value that makes no sense.

    ``group_size`` None is the largest divisor of the number of KV heads up to 4, ``group_size_k`` and ``group_size_v``
    stand for one of K and V; ``calib_seqlen`` None is 1024 tokens
    or the model's context if that is shorter. ``whiten_samples`` and ``fisher_samples`` are upper limits: a
    calibration text that holds fewer whole samples gives as many as it has. ``latent_bits`` or ``tiers``, pairs of
    ``(fraction of the rank, bits)``, leading numbers first, say how latents are quantized in the cache,
    ``latent_bits_k`` and ``latent_bits_v`` for one of both; ``hadamard`` None rotates latents where they are quantized.
    ``target_compression``, times fewer bytes than the dense cache, or ``bytes_per_token`` is a budget that ranks, bits
    and tiers are chosen for; bits or tiers that are given stay as they are.
    ``search`` None is ``energy`` for the objective ``weighted``, whose errors are one quantity, else ``uniform``.
    ``refit`` None fits ``up`` again where the objective is ``weighted``; ``k_cost`` is what a rank of
    K must save beyond one of V in the searches by energy.
    ``resume`` goes on with the work of a run that was killed, and keeps its own if it ends early; ``workers``
    groups of heads are decomposed at a time, None for as many as PyTorch has threads.
    ``latent_group_size`` numbers share a scale, 0: those of a tier; ``latent_clip_ratio`` None means not given.
    ``share_layers`` layers read the cache of an earlier one, chosen so that the last hidden states stay as similar as
    ``share_threshold``, None for 0.5; ``share_map`` says which instead.
    """

    model: str
    out: Path
    rank_ratio: float = DEFAULT_RATIO
    group_size: int | None = None
    objective: str = "weighted"
    search: str | None = None
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
    resume: bool = False
    workers: int | None = None
    latent_bits: int | None = None
    latent_bits_k: int | None = None
    latent_bits_v: int | None = None
    tiers: tuple[tuple[float, int], ...] | None = None
    hadamard: bool | None = None
    target_compression: float | None = None
    bytes_per_token: int | None = None
    latent_group_size: int = 0
    latent_symmetric: bool = False
    latent_clip_ratio: float | None = None
    refit: bool | None = None
    reorder_heads: bool = False
    k_cost: float = 0.0
    group_size_k: int | None = None
    group_size_v: int | None = None
    share_layers: int = 0
    share_threshold: float | None = None
    share_map: LayerPairs | None = None

    def __post_init__(self) -> None:
        if self.search is None:
            by_energy = self.objective == "weighted" and not self.has_budget
            object.__setattr__(self, "search", "energy" if by_energy else "uniform")
        self._check_budget()
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
        self._check_tiers()
        self._check_scales()
        self._check_sharing()

    @property
    def has_budget(self) -> bool:
        return self.target_compression is not None or self.bytes_per_token is not None

    def _check_budget(self) -> None:
        if self.target_compression is not None and self.bytes_per_token is not None:
            raise CompressionError("--target-compression and --bytes-per-token are both budgets; give one of them.")
        if self.target_compression is not None and not 1 <= self.target_compression < float("inf"):
            raise CompressionError(
                f"target compression is {self.target_compression}; expected how many times fewer bytes, like 6."
            )
        if self.bytes_per_token is not None and self.bytes_per_token < 1:
            raise CompressionError(f"the budget is {self.bytes_per_token} bytes per token; expected at least 1.")
        if self.has_budget and (self.rank_ratio != DEFAULT_RATIO or self.search != "uniform"):
            raise CompressionError("a budget chooses the ranks itself; give it without --rank-ratio and --search.")

    def _check_tiers(self) -> None:
        if self.latent_bits is not None and self.tiers is not None:
            raise CompressionError("--latent-bits and --tiers both say the bits of latents; give one of them.")
        for fractions in (self.fractions_k, self.fractions_v):
            try:
                cut_into_tiers(TIER_STEP, fractions)
            except ValueError as error:
                raise CompressionError(f"{error}; give --latent-bits 4, or --tiers 0.25:8,0.75:4.") from error

    def _check_scales(self) -> None:
        try:
            cut_into_scale_groups((), self.latent_group_size)
        except ValueError as error:
            raise CompressionError(f"{error}; give --latent-group-size 32, or 0 for a scale per tier.") from error
        if self.latent_clip_ratio is not None and not 0 < self.latent_clip_ratio <= 1:
            raise CompressionError(
                f"latent clip ratio {self.latent_clip_ratio} is outside (0, 1]; give the share of the range of a group "
                "that its codes cover, like 0.95."
            )

    def _check_sharing(self) -> None:
        if self.share_layers < 0:
            raise CompressionError(f"number of layers that share is {self.share_layers}; expected 0 or more.")
        if self.share_layers and self.share_map is not None:
            raise CompressionError("--share-layers searches what --share-map gives; give one of them.")
        if self.share_threshold is not None and not self.share_layers:
            raise CompressionError("--share-threshold acts on --share-layers only; drop it.")
        if self.share_threshold is not None and not -1 <= self.share_threshold <= 1:
            raise CompressionError(
                f"share threshold {self.share_threshold} is outside [-1, 1]; give a cosine, like 0.5."
            )

    @property
    def least_similarity(self) -> float:
        """Cosine that layers which share must leave the last hidden states with."""
        return DEFAULT_SHARE_THRESHOLD if self.share_threshold is None else self.share_threshold

    @property
    def fixes_tiers_k(self) -> bool:
        """Whether bits or tiers of K were given."""
        return (self.latent_bits, self.latent_bits_k, self.tiers) != (None, None, None)

    @property
    def fixes_tiers_v(self) -> bool:
        """Whether bits or tiers of V were given."""
        return (self.latent_bits, self.latent_bits_v, self.tiers) != (None, None, None)

    @property
    def fractions_k(self) -> TierFractions:
        """``(fraction of the rank, bits)`` of K."""
        return self._fractions(self.latent_bits_k)

    @property
    def fractions_v(self) -> TierFractions:
        """``(fraction of the rank, bits)`` of V."""
        return self._fractions(self.latent_bits_v)

    def _fractions(self, own_bits: int | None) -> TierFractions:
        if own_bits is None and self.tiers is not None:
            return self.tiers
        return ((1.0, next(bits for bits in (own_bits, self.latent_bits, UNQUANTIZED) if bits is not None)),)

    @staticmethod
    def _check_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
        if value not in choices:
            raise CompressionError(f"{what} {value!r} is unknown; expected one of {', '.join(choices)}.")

    def _check_counts(self) -> None:
        counts = {
            "group size": self.group_size,
            "group size of K": self.group_size_k,
            "group size of V": self.group_size_v,
            "number of whitening samples": self.whiten_samples,
            "number of Fisher samples": self.fisher_samples,
            "number of workers": self.workers,
        }
        for what, value in counts.items():
            if value is not None and value < 1:
                raise CompressionError(f"{what} is {value}; expected at least 1.")
        if self.calib_seqlen is not None and self.calib_seqlen < 2:
            raise CompressionError(f"calibration samples of {self.calib_seqlen} tokens are too short; give at least 2.")
        if not 0 <= self.k_cost < float("inf"):
            raise CompressionError(
                f"key cost {self.k_cost} is negative or not finite; give what a rank of K costs extra."
            )
        if self.k_cost and (self.has_budget or self.search not in ENERGY_SEARCHES):
            raise CompressionError(f"--k-cost acts on --search {' and '.join(ENERGY_SEARCHES)} only; drop it.")
        if self.seed < 0:
            raise CompressionError(f"seed {self.seed} is negative; expected 0 or more.")
