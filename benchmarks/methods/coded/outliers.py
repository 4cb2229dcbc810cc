"""A few numbers kept as they are, beside the rest in few bits; indices are real tensors and count."""

from dataclasses import dataclass

import torch


def index_dtype(size: int) -> torch.dtype:
    """The narrowest integer dtype that torch can index with after a cast, for ``size`` places."""
    return torch.uint8 if size <= 2**8 else torch.int16 if size <= 2**15 else torch.int32


@dataclass(frozen=True)
class Outliers:
    """``count`` numbers of each row of a matrix ``[..., size]``, and what stands in their places meanwhile."""

    indices: torch.Tensor  # index_dtype(size) [..., count]
    values: torch.Tensor  # the store's full-precision dtype [..., count]

    @classmethod
    def extremes(cls, x: torch.Tensor, count: int, dtype: torch.dtype) -> "Outliers":
        """The ``count`` largest and the ``count`` smallest numbers of each row of ``x [..., size]``."""
        order = x.argsort(dim=-1, stable=True)
        indices = torch.cat([order[..., :count], order[..., order.shape[-1] - count :]], -1)
        return cls(indices.to(index_dtype(x.shape[-1])), x.gather(-1, indices).to(dtype))

    @classmethod
    def beyond(cls, x: torch.Tensor, threshold: float, dtype: torch.dtype) -> "Outliers":
        """Those of ``x [size]``, one row, whose magnitude is above ``threshold``."""
        indices = (x.abs() > threshold).nonzero()[:, 0]
        return cls(indices.to(index_dtype(x.shape[-1])), x[indices].to(dtype))

    def replaced(self, x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        """``x`` with ``by``, one number per row or one in all, in the places of the outliers."""
        return x.scatter(-1, self.indices.long(), by.expand(self.indices.shape).to(x.dtype))

    def restored(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` with the outliers in their places."""
        return x.scatter(-1, self.indices.long(), self.values.to(x.dtype))
