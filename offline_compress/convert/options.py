"""What a user can ask of the conversion, and how the command line asks for it."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from offline_compress.options import DTYPES, VALUE_PATHS
from offline_compress.run.option_field import check_fields, option


@dataclass(frozen=True)
class ConvertOptions:
    """The choices of one conversion; the help of each says what it means.

    Raises: CompressionError for a value that makes no sense.
    """

    dump: Path = option("the dumped directory", positional=True, metavar="DIR")
    out: Path = option("a new directory", positional=True, metavar="OUT")
    _: KW_ONLY
    value_path: str = option(
        "v_up multiplied into o_proj, as the reference does when it loads, or kept apart",
        default="fused",
        choices=tuple(path for path in VALUE_PATHS if path != "auto"),
    )
    dtype: str = option("of the output; auto keeps the dump's", default="auto", choices=DTYPES)
    overwrite: bool = option("replace OUT, once the new one is complete", default=False)

    def __post_init__(self) -> None:
        check_fields(self)
