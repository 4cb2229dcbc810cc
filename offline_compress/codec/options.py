"""What a user can ask of a calibration, and how the command line asks for it."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from offline_compress.run.errors import CompressionError
from offline_compress.run.option_field import check_device, check_fields, option

HIGHEST_COMPRESSION, LOWEST_COMPRESSION = 7.5, 1.0


@dataclass(frozen=True)
class CalibrateOptions:
    """The choices of one calibration; the help of each says what it means.

    Raises: CompressionError for a value that makes no sense.
    """

    model: str = option("a model directory or hub id", positional=True, metavar="MODEL")
    out: Path = option("a new directory for the codec", positional=True, metavar="OUT")
    _: KW_ONLY
    target_compression: float = option(
        "times fewer bytes per token than 16 bits per number; 1 stores float16 in an orthogonal basis",
        default=4.0,
        metavar="X",
    )
    calib_data: str | None = option(
        "text, .jsonl, .json, .csv or .parquet file (.gz and .zst of these too) or hub dataset id",
        default=None,
        metavar="FILE_OR_ID",
    )
    calib_field: str | None = option(
        "the field or column with text or with chats (default: text, content or messages)", default=None, metavar="NAME"
    )
    no_data: bool = option("random tokens alone in the place of text", default=False)
    samples: int = option("of the text; a fourth as many of random tokens are added", default=24, least=1, metavar="N")
    held_out: int = option("samples that only measure what the codec costs", default=3, least=1, metavar="N")
    seqlen: int = option("tokens per sample", default=1024, least=16, metavar="N")
    context: int = option(
        "positions that samples are spread over (default: 4096, or the model's)", default=4096, least=16, metavar="N"
    )
    per_head: bool = option("every KV head by itself: any tensor parallel size, more loss per byte", default=False)
    group_size: int | None = option(
        "neighbouring KV heads coded together (default: as many as have at most 16 query heads and 512 numbers)",
        default=None,
        least=1,
        metavar="N",
    )
    max_formats: int = option("distinct formats of layers at most", default=4, least=1, metavar="N")
    seed: int = option("of samples, positions and sampled tokens", default=42, least=0)
    device: str = option("auto, cpu, cuda or cuda:N", default="auto")
    overwrite: bool = option("replace OUT", default=False)
    resume: bool = option("go on with a run that was killed", default=False)
    dry_run: bool = option("say what would be done, with memory and time, and write nothing", default=False)

    def __post_init__(self) -> None:
        check_fields(self)
        check_device(self.device)
        if not LOWEST_COMPRESSION <= self.target_compression <= HIGHEST_COMPRESSION:
            raise CompressionError(
                f"target compression is {self.target_compression:g}; expected {LOWEST_COMPRESSION:g} to "
                f"{HIGHEST_COMPRESSION:g}."
            )
        if bool(self.calib_data) == self.no_data:
            raise CompressionError("give either --calib-data FILE or --no-data.")
        if self.per_head and self.group_size not in (None, 1):
            raise CompressionError(f"--per-head is a group size of 1; got {self.group_size} too.")
        if self.context < self.seqlen:
            raise CompressionError(
                f"context {self.context} is less than a sample of {self.seqlen} tokens; give more, or a smaller seqlen."
            )
