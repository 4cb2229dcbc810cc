"""What options ask of each other and of the model, once a plan is made of both."""

from offline_compress.options import CompressOptions
from offline_compress.run.errors import CompressionError


def check_sharing(options: CompressOptions, num_layers: int) -> None:
    """Raises CompressionError where layers cannot share a cache as asked."""
    if options.share_layers >= num_layers:
        raise CompressionError(
            f"{options.share_layers} of {num_layers} layers cannot share, because the first has none "
            "before it; give fewer --share-layers."
        )


def check_data(options: CompressOptions, samples_needed: int) -> None:
    """Raises CompressionError where calibration data is needed and not given."""
    if options.calib_data is not None:
        return
    if options.share_layers:
        raise CompressionError("--share-layers needs text to try layers on; add --calib-data, or give a --share-map.")
    if options.has_budget:
        raise CompressionError("a budget needs calibration data to choose ranks and bits on; add --calib-data.")
    if samples_needed:
        raise CompressionError(
            f"objective {options.objective} with search {options.search} needs calibration data; add --calib-data with "
            "a text, jsonl or parquet file or a hub dataset id (or use --objective svd --search uniform)."
        )
