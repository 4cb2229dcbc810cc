"""The settings of each method among which ``compare`` searches: discrete choices, and one size that bytes rise with."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product

from benchmarks.methods.coded.decoquant import DecoQuant
from benchmarks.methods.coded.gear import GEAR
from benchmarks.methods.coded.kivi import KIVI
from benchmarks.methods.coded.kvquant import KVQuant
from benchmarks.methods.coded.zipcache import ZipCache
from benchmarks.methods.harness.interface import Layer, Method
from benchmarks.methods.kept.h2o import H2O
from benchmarks.methods.kept.pyramidinfer import PyramidInfer
from benchmarks.methods.kept.pyramidkv import PyramidKV
from benchmarks.methods.kept.qpruningkv import QPruningKV
from benchmarks.methods.kept.rolling_h2o import RollingH2O
from benchmarks.methods.kept.rolling_streaming_llm import RollingStreamingLLM
from benchmarks.methods.kept.snapkv import SnapKV
from benchmarks.methods.kept.streaming_llm import StreamingLLM
from benchmarks.methods.projected.lorc import LoRC
from benchmarks.methods.projected.matryoshkakv import MatryoshkaKV
from benchmarks.methods.shared.kvsharer import KVSharer

GROUPS = (32, 64)
SMALLEST_CAPACITY = 16


@dataclass(frozen=True)
class Family:
    """``make(size)`` for sizes from ``low`` to ``high``; more size, more bytes. One size where no knob is one."""

    make: Callable[[int], Method]
    low: int = 0
    high: int = 0


def groups(layer: Layer) -> list[int]:
    """The sizes of groups that fit a token's values, smallest first."""
    return [size for size in GROUPS if layer.num_kv_heads * layer.head_dim % size == 0]


def fixed(method: Method) -> Family:
    return Family(lambda size: method)


def sized(make: Callable[..., Method], low: int, high: int, *knobs: str) -> Family:
    """The size is what all ``knobs`` are set to."""
    return Family(lambda size: make(**dict.fromkeys(knobs, size)), low, high)


def kivi(layer: Layer, tokens: int) -> Iterator[Family]:
    for k_bits, v_bits, group in product((2, 4), (2, 4), groups(layer)):
        for residual in (group, 128):
            yield fixed(KIVI(k_bits=k_bits, v_bits=v_bits, group_size=group, residual_length=residual))


def gear(modes: tuple[str, ...], layer: Layer, tokens: int) -> Iterator[Family]:
    """The rank of keys and values in the prompt is the size, but for KCVT."""
    size = max(groups(layer))
    for mode, bits, left in product(modes, (2, 3, 4), (0.02, 0.005) if modes[0].startswith("GEAR-") else (0.0,)):
        make = partial(GEAR, compress_mode=mode, quantize_bit=bits, left=left, group_size=size)
        if mode == "KCVT":
            yield fixed(make())
        else:
            yield sized(make, 1, layer.head_dim // 4, "prefillrank", "prefillrankv")


def pruning(method: type[Method], layer: Layer, tokens: int) -> Iterator[Family]:
    yield sized(method, SMALLEST_CAPACITY, tokens, "max_capacity_prompts")


def rolling(layer: Layer, tokens: int) -> Iterator[Family]:
    yield sized(RollingStreamingLLM, 1, tokens, "recent_size")


def rolling_h2o(layer: Layer, tokens: int) -> Iterator[Family]:
    """As published half of them heavy hitters, or three in four."""
    for share in (2, 4):

        def make(kept: int, share: int = share) -> Method:
            return RollingH2O(hh_size=kept - kept // share, recent_size=kept // share)

        yield Family(make, SMALLEST_CAPACITY, tokens)


def pyramidinfer(layer: Layer, tokens: int) -> Iterator[Family]:
    """Layers keep half of the prompt on average even at a ratio of 0, so budgets above 2 are out of reach."""
    for strategy in ("cosine", "linear"):

        def make(percent: int, strategy: str = strategy) -> Method:
            return PyramidInfer(
                prefill_decay_strategy=strategy,
                min_context_length=SMALLEST_CAPACITY,
                prefill_decay_ratio=percent / 100,
            )

        yield Family(make, 0, 100)


def qpruningkv(layer: Layer, tokens: int) -> Iterator[Family]:
    choices = product(("SnapKV", "PyramidKV", "H2O", "StreamingLLM"), (8, 4, 2), ("kivi",))
    size = max(groups(layer))
    for method, bits, quantizer in (*choices, ("SnapKV", 4, "kvquant")):
        make = partial(QPruningKV, method=method, nbits=bits, quant_method=quantizer, group_size=size)
        yield sized(make, SMALLEST_CAPACITY, tokens, "max_capacity_prompts")


def layerquant(layer: Layer, tokens: int) -> Iterator[Family]:
    """A quarter of the layers, the first ones, in 8 or 4 bits, the others in fewer."""
    quarter, size = max(1, layer.num_layers // 4), max(groups(layer))
    kind = partial(QPruningKV, method="LayerQuant", quant_method="layerquant")
    base = partial(kind, quant_end_layers=quarter, group_size=size)
    for special, bits in ((8, 4), (8, 2), (4, 2)):
        make = partial(base, quant_layers_bits=special, nbits=bits)
        yield sized(make, SMALLEST_CAPACITY, tokens, "max_capacity_prompts")


def kvquant(layer: Layer, tokens: int) -> Iterator[Family]:
    for bits, share in product((4, 3, 2), (1.0, 0.99, 0.97)):
        yield fixed(KVQuant(abits=bits, sparsity_threshold=share))


def zipcache(layer: Layer, tokens: int) -> Iterator[Family]:
    for important, other in ((4, 2), (8, 4), (8, 2)):
        knobs = {"k_important_bit": important, "v_important_bit": important}
        knobs |= {"k_unimportant_bit": other, "v_unimportant_bit": other}
        make = partial(ZipCache, **knobs)

        def kept(twentieths: int, make: Callable[..., Method] = make) -> Method:
            return make(unimportant_ratio=(20 - twentieths) / 20)

        yield Family(kept, 0, 20)


def decoquant(layer: Layer, tokens: int) -> Iterator[Family]:
    for bits, group in product((8, 4, 3, 2), groups(layer)):
        yield fixed(DecoQuant(bits=bits, group_size=group))


def matryoshkakv(training: dict[str, int], layer: Layer, tokens: int) -> Iterator[Family]:
    """Ranks per head, or the same rank for every head."""
    heads, interval = 2 * layer.num_layers * layer.num_kv_heads, max(4, layer.head_dim // 16)
    base: Callable[..., Method] = MatryoshkaKV
    make = partial(base, interval=interval, update_num=max(1, heads // 2), **training)
    yield sized(make, heads * interval, heads * layer.head_dim, "total_rank")
    yield sized(make, 1, layer.head_dim, "key_truncate_index", "value_truncate_index")


def lorc(layer: Layer, tokens: int) -> Iterator[Family]:
    full = layer.num_kv_heads * layer.head_dim
    for least in (1.0, 0.5, 0.25):

        def make(rank: int, least: float = least) -> Method:
            return LoRC(d_max=rank, d_min=max(1, round(least * rank)))

        yield Family(make, 1, full)


def kvsharer(layer: Layer, tokens: int) -> Iterator[Family]:
    for shared in range(1, layer.num_layers):
        yield fixed(KVSharer(shared_layers=shared))


FAMILIES: dict[str, Callable[[Layer, int], Iterator[Family]]] = {
    "kivi": kivi,
    "gear": partial(gear, ("GEAR-KCVT", "GEAR")),
    "gear-l": partial(gear, ("GEARL", "GEARL-KCVT")),
    "kcvt": partial(gear, ("KCVT",)),
    "streaming_llm": partial(pruning, StreamingLLM),
    "streaming_llm_rolling": rolling,
    "h2o": partial(pruning, H2O),
    "h2o_rolling": rolling_h2o,
    "snapkv": partial(pruning, SnapKV),
    "pyramidkv": partial(pruning, PyramidKV),
    "pyramidinfer": pyramidinfer,
    "qpruningkv": qpruningkv,
    "layerquant": layerquant,
    "kvquant": kvquant,
    "zipcache": zipcache,
    "decoquant": decoquant,
    "matryoshkakv": partial(matryoshkakv, {}),
    "matryoshkakv-pca": partial(matryoshkakv, {"max_steps": 0}),
    "lorc": lorc,
    "kvsharer": kvsharer,
}
