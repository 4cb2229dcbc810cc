"""What a user can ask of the fine-tuning, and how the command line asks for it.

Defaults are the paper's (Palu, ICLR 2025): rank 32, alpha 32, learning rate 2e-4 on a cosine, at most 8,000 samples.
Batch size, sample length and modules are not in what we know of it; those here are ours.
"""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from offline_compress.run.errors import CompressionError
from offline_compress.run.option_field import check_device, check_fields, option


@dataclass(frozen=True)
class FinetuneOptions:
    """The choices of one training; the help of each says what it means.

    Raises: CompressionError for a value that makes no sense.
    """

    checkpoint: Path = option("a directory that palu-compress wrote", positional=True, metavar="OUT")
    data: str = option(
        "text, .jsonl, .json, .csv or .parquet file (.gz and .zst of these too) or hub dataset id; never the text you "
        "evaluate on",
        metavar="FILE_OR_ID",
    )
    out: Path | None = option("a new directory (default: OUT is replaced)", default=None, metavar="DIR")
    _: KW_ONLY
    data_field: str | None = option(
        "the field or column with text or with chats (default: text, content or messages)", default=None, metavar="NAME"
    )
    steps: int | None = option("of training (default: one pass over the samples)", default=None, least=0, metavar="N")
    samples: int = option("most samples of the data", default=8000, least=1, metavar="N")
    seqlen: int | None = option("tokens per sample (default: 1024, or the context)", default=None, least=2, metavar="N")
    batch_size: int = option("samples per step", default=8, least=1, metavar="N")
    rank: int = option("of the adapters", default=32, least=1, metavar="R")
    alpha: float = option("adapters are scaled by alpha / rank", default=32.0, metavar="ALPHA")
    learning_rate: float = option("at the start", "--lr", default=2e-4, metavar="RATE")
    seed: int = option("of samples, their order and the adapters", default=42, least=0)
    device: str = option("auto, cpu, cuda or cuda:N", default="auto")

    def __post_init__(self) -> None:
        check_fields(self)
        check_device(self.device)
        for what, number in (("learning rate", self.learning_rate), ("alpha", self.alpha)):
            if not 0 < number < float("inf"):
                raise CompressionError(f"{what} is {number}; expected a number above 0.")
