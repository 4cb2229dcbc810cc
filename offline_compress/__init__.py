"""Writes compressed checkpoints: ``palu-compress`` on the command line, :func:`compress` in Python.

``offline_compress.compress(model, out, rank_ratio=0.5, calib_data="text.txt")`` does what the command does; its
arguments are the fields of :class:`offline_compress.options.CompressOptions`.
"""

from typing import Any

__all__ = ["CompressionError", "compress"]


def __getattr__(name: str) -> Any:
    """Imports torch and transformers only when something is asked for."""
    if name == "compress":
        from offline_compress.pipeline import compress

        return compress
    if name == "CompressionError":
        from offline_compress.run.errors import CompressionError

        return CompressionError
    raise AttributeError(f"module 'offline_compress' has no attribute {name!r}")
