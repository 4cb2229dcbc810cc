"""What a user can ask of the compressor, and how the command line asks for it."""

from dataclasses import KW_ONLY, dataclass
from functools import partial
from pathlib import Path

from offline_compress.pair_lists import LayerPairs, read_pairs, read_tiers
from offline_compress.run.errors import CompressionError
from offline_compress.run.option_field import check_device, check_fields, option
from offline_compress.searches import ENERGY_SEARCHES, SEARCHES
from palu_vllm.format.config import DTYPE_BYTES
from palu_vllm.format.latent_format import TIER_STEP, UNQUANTIZED, TierFractions, cut_into_scale_groups, cut_into_tiers

OBJECTIVES = ("svd", "whiten", "weighted")
VALUE_PATHS = ("fused", "factored", "auto")
DTYPES = ("auto", *DTYPE_BYTES)
DEFAULT_GROUP_SIZE = 4
DEFAULT_RATIO = 0.5
DEFAULT_SEQLEN = 1024
DEFAULT_SHARE_THRESHOLD = 0.5

CALIBRATION = "calibration"  # the section that --calib-samples, which is no field, stands in too
_budget = partial(option, section="budget, instead of --rank-ratio")
_ranks = partial(option, section="compression")
_bits = partial(option, section="quantization of latents in the cache")
_calibration = partial(option, section=CALIBRATION)
_running = partial(option, section="running")


@dataclass(frozen=True)
class CompressOptions:
    """The choices of one compression; the help of each says what it means.

    ``search`` None becomes ``energy`` for the objective ``weighted``, whose errors are one quantity, else ``uniform``.
    A calibration text that holds fewer whole samples than asked for gives as many as it has.
    Raises: CompressionError for a value that makes no sense.
    """

    model: str
    out: Path
    _: KW_ONLY
    target_compression: float | None = _budget(
        "times fewer bytes per token than the dense model, like 6: ranks per layer, bits and tiers are chosen for the "
        "least predicted error on the calibration data; bits or tiers that are given stay as they are",
        default=None,
        metavar="X",
    )
    bytes_per_token: int | None = _budget("the same, as bytes of all layers", least=1, default=None, metavar="N")
    exhaustive: bool = _budget(
        "try every way of storing in attention, instead of predicting what its rounding costs; far slower",
        default=False,
    )
    rank_ratio: float = _ranks(
        "fraction of the KV rank to keep, in (0, 1]", "--param_ratio_target", default=DEFAULT_RATIO, metavar="R"
    )
    group_size: int | None = _ranks(
        "adjacent KV heads that share one decomposition (default: the largest divisor of their number up to 4)",
        "--head_group_size",
        least=1,
        default=None,
        metavar="N",
    )
    group_size_k: int | None = _ranks("of K only", least=1, default=None, metavar="N")
    group_size_v: int | None = _ranks(
        "of V only; one of both sizes must divide the other", least=1, default=None, metavar="N"
    )
    objective: str = _ranks(
        "what is kept best: the weights, the keys and values of the calibration data (the paper), or what its "
        "attention adds to the residual stream",
        "--decompose_method",
        default="weighted",
        choices=OBJECTIVES,
    )
    search: str | None = _ranks(
        "how ranks are spread over layers, K and V; see below (default: energy with --objective weighted, else "
        "uniform)",
        "--search_method",
        default=None,
        choices=SEARCHES,
    )
    k_cost: float = _ranks(
        "with energy and sensitivity a rank of K, which attention rebuilds keys from, must save 1 + C times what "
        "a rank of V saves: faster decoding at the same bytes",
        default=0.0,
        metavar="C",
    )
    refit: bool | None = _ranks(
        "fit the up-projections again by least squares (default: with --objective weighted)", default=None
    )
    reorder_heads: bool = _ranks("let similar KV heads share a group, instead of adjacent ones", default=False)
    share_layers: int = _ranks(
        "layers that read the cache of an earlier one and hold none (KVSharer): of the most dissimilar pairs "
        "those that change the last hidden states least; needs the whole model in float32 in memory",
        least=0,
        default=0,
        metavar="N",
    )
    share_threshold: float | None = _ranks(
        f"cosine with the model's own that they must keep (default: {DEFAULT_SHARE_THRESHOLD})",
        default=None,
        metavar="C",
    )
    share_map: LayerPairs | None = _ranks(
        "which layers read which, like 7:2,9:4, unsearched",
        default=None,
        metavar="LAYER:SOURCE,...",
        read=read_pairs,
    )
    value_path: str = _ranks(
        "v_up multiplied into o_proj, or kept apart, or whichever is smaller", default="fused", choices=VALUE_PATHS
    )
    dtype: str = _ranks("dtype of the output; auto keeps the model's", default="auto", choices=DTYPES)
    latent_bits: int | None = _bits("16, 8, 4, 3 or 2 (default: 16)", "--lt_bits", default=None, metavar="BITS")
    latent_bits_k: int | None = _bits("of K only", default=None, metavar="BITS")
    latent_bits_v: int | None = _bits("of V only", default=None, metavar="BITS")
    tiers: TierFractions | None = _bits(
        "leading numbers of every latent with more bits, like 0.25:8,0.75:4; scaled and mixed tier by tier",
        default=None,
        metavar="FRACTION:BITS,...",
        read=read_tiers,
    )
    hadamard: bool | None = _bits(
        "mix latents so that their numbers are about equally large (default: where they are quantized)",
        "--lt_hadamard",
        default=None,
    )
    latent_group_size: int = _bits(
        "numbers of a tier that share a scale, a multiple of 16; 0: all", "--lt_group_size", default=0, metavar="N"
    )
    latent_symmetric: bool = _bits("codes about zero: a scale and no minimum", "--lt_sym", default=False)
    latent_clip_ratio: float | None = _bits(
        "fraction of the range that codes cover, in (0, 1] (default: searched on the calibration data, per layer)",
        "--lt_clip_ratio",
        default=None,
        metavar="C",
    )
    calib_data: str | tuple[str, ...] | None = _calibration(
        "text, .jsonl, .json, .csv or .parquet file (.gz and .zst of these too) or hub dataset "
        "id[:configuration[:split]]; several are mixed, each with its fraction of the samples, like a.jsonl=0.7 "
        "b.txt=0.3; never the text you evaluate on",
        "--calib_dataset",
        default=None,
        metavar="FILE_OR_ID",
        several=True,
    )
    calib_field: str | None = _calibration(
        "the field or column with text, or with chats, which the model's own template renders (default: text, "
        "content or messages)",
        default=None,
        metavar="NAME",
    )
    whiten_samples: int = _calibration(
        "most samples for the whitening", "--n_whiten_calib_samples", least=1, default=32, metavar="N"
    )
    fisher_samples: int = _calibration(
        "most samples for the Fisher information", "--n_fisher_calib_samples", least=1, default=32, metavar="N"
    )
    calib_seqlen: int | None = _calibration(
        f"tokens per sample (default: {DEFAULT_SEQLEN}, or the model's context if shorter)",
        "--calib_seqlen",
        least=2,
        default=None,
        metavar="N",
    )
    seed: int = _calibration("chooses the samples among the text", least=0, default=42)
    device: str = _running("auto, cpu, cuda or cuda:N", default="auto")
    overwrite: bool = _running("replace OUT, once the new one is complete", default=False)
    dry_run: bool = _running("print ranks, bytes, memory, disk and time; write nothing", default=False)
    resume: bool = _running(
        "go on with the work of a run that was killed, and keep the work if this run ends early", default=False
    )
    workers: int | None = _running(
        "groups of heads that are decomposed at a time, on a thread each; the bytes are the same for any number "
        "(default: as many as PyTorch has threads, so OMP_NUM_THREADS or the cores; 1 on a GPU)",
        least=1,
        default=None,
        metavar="N",
    )

    def __post_init__(self) -> None:
        if self.search is None:
            by_energy = self.objective == "weighted" and not self.has_budget
            object.__setattr__(self, "search", "energy" if by_energy else "uniform")
        check_fields(self)
        check_device(self.device)
        self._check_budget()
        self._check_ranks()
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
        if self.exhaustive and not self.has_budget:
            raise CompressionError("--exhaustive acts on --target-compression and --bytes-per-token only; drop it.")
        if self.has_budget and (self.rank_ratio != DEFAULT_RATIO or self.search != "uniform"):
            raise CompressionError("a budget chooses the ranks itself; give it without --rank-ratio and --search.")

    def _check_ranks(self) -> None:
        if not 0 < self.rank_ratio <= 1:
            raise CompressionError(
                f"rank ratio {self.rank_ratio} is outside (0, 1]; give the fraction of the KV cache to keep, like 0.5."
            )
        if not 0 <= self.k_cost < float("inf"):
            raise CompressionError(
                f"key cost {self.k_cost} is negative or not finite; give what a rank of K costs extra."
            )
        if self.k_cost and (self.has_budget or self.search not in ENERGY_SEARCHES):
            raise CompressionError(f"--k-cost acts on --search {' and '.join(ENERGY_SEARCHES)} only; drop it.")

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
                f"latent clip ratio {self.latent_clip_ratio} is outside (0, 1]; give the fraction of the range "
                "of a scale group that its codes cover, like 0.95."
            )

    def _check_sharing(self) -> None:
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
