"""What every implementation of attention over codec slots takes: the specification, the C++ and the Triton kernels.

An implementation is built once per layer from a ``LayerCodec`` and ``CodecSettings``, and then offers

``store(key, value, positions, cache, slot_mapping)``
    ``key [tokens, kv_heads, head_dim]`` after norm and RoPE, ``value [tokens, kv_heads, value_dim]``, ``positions
    [tokens]`` int64, the tokens' numbers in their texts, ``slot_mapping [tokens]`` int64, block * block_size + offset,
    negative for padding; writes ``cache``. Inputs may have more rows than ``slot_mapping``, which are ignored.
``attend(query, cache, batch, out)``
    ``query [tokens, num_heads, head_dim]``, after norm and RoPE, ``out [tokens, num_heads, value_dim]``. Rows past the
    last query are left alone.
``measure(query, out)``
    Fills ``out`` with zeros, and on a GPU takes and gives back the memory that ``attend`` would take for such a batch.
    A server asks so before it has a cache, to know what it can spare for one.
``captures(queries)``
    Whether a batch of so many queries per request may be recorded as a CUDA graph, which reads nothing on the host and
    is launched again for other lengths and padded requests.

``cache`` is uint8 ``[num_blocks, num_groups, block_size, slot.bytes]`` with any strides whose last is 1.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class CodecSettings:
    """What attention of one layer does, beside the codec.

    A score is ``cap(scale q . k)``, with ``cap(x) = soft_cap tanh(x / soft_cap)``; a query sees itself and the
    ``sliding_window - 1`` tokens before it, or all. ``sinks [num_heads]`` are scores of no token, in the softmax alone.
    ``max_seq_len`` is the longest text, where it is known: tables of positions are made once.
    """

    num_heads: int
    scale: float
    sliding_window: int | None = None
    soft_cap: float = 0.0  # 0: none
    sinks: torch.Tensor | None = None
    max_seq_len: int | None = None
