"""Tiles that were found offline are stored as data: ``tuned/<name>.json``.

Of a GPU, timed there by ``python -m benchmarks.latency.tune``; of an architecture such as ``sm_80``, compiled ahead of
time by
``python -m benchmarks.kernels.fit_registers`` where the formulas leave registers on the stack. A file is
``{"format": 1, "gpu": name, "tiles": {key: {"tokens": .., "num_stages": .., "num_warps": ..}}}``, with ``tuned_key`` as
key, and may say more beside it. Without a file, or for a key that it lacks, the formulas of ``tiling`` and
``prefill_plan`` hold.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from palu_vllm.format.latent_format import LatentFormat
from palu_vllm.format.shape import LayerShape

FORMAT = 1
FOLDER = Path(__file__).parent / "tuned"


@dataclass(frozen=True)
class Tiles:
    """What is tuned of a tiling. The optional sizes are of decoding; None is what the formulas say."""

    tokens: int  # of the context, per step
    num_stages: int
    num_warps: int
    rank: int | None = None  # of the latent key, per product
    pairs: int | None = None  # rebuilt together
    values: int | None = None  # of the latent value, per product

    def stored(self) -> dict[str, int]:
        """As it stands in a file: what is not None."""
        return {name: size for name, size in asdict(self).items() if size is not None}


SIZES = (16, 32, 64, 128, 256)
ALLOWED = {"tokens": SIZES, "num_stages": (1, 2, 3, 4), "num_warps": (4, 8)}
OPTIONAL = {"rank": (*SIZES, 512), "pairs": SIZES[:3], "values": SIZES}
Tuned = tuple[tuple[str, Tiles], ...]


def tuned_key(kind: str, shape: LayerShape, element_size: int, queries: int = 1, has_key_norm: bool = False) -> str:
    """Names a layer's kernel: ``kind`` is ``decode`` or ``prefill``. Windows and scales make no difference."""
    groups = (
        f"{shape.group_size_k}"
        if shape.group_size_k == shape.group_size_v
        else f"{shape.group_size_k}+{shape.group_size_v}"
    )
    sizes = (shape.num_heads, shape.num_kv_heads, shape.head_dim, groups, shape.rank_k, shape.rank_v)
    stored = "numbers" if shape.slot is None else f"{tiers(shape.slot.key)},{tiers(shape.slot.value)}"
    norm = " key norm" if has_key_norm else ""
    return f"{kind} {'/'.join(map(str, sizes))} {stored} {element_size} bytes {queries} queries{norm}"


def tiers(form: LatentFormat) -> str:
    found = "+".join(f"{tier.size}x{tier.bits}" for tier in form.tiers)
    return f"{found} symmetric" if form.symmetric else found


def file_of(gpu: str) -> Path:
    """Of the name that CUDA gives a device, or of an architecture."""
    return FOLDER / f"{gpu.lower().replace(' ', '_').replace('/', '_')}.json"


def tuned_for(gpu: str) -> Tuned:
    """What is stored for a GPU or an architecture; nothing where there is no file. Raises ValueError for a bad one."""
    path = file_of(gpu)
    return read_tuned(path, gpu) if path.exists() else ()


def read_tuned(path: Path, gpu: str) -> Tuned:
    """Raises ValueError, one sentence that names the file, where it is not a file of that GPU's tiles."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"got {path.name} that is no JSON ({error}); delete it or run benchmarks.latency.tune"
        ) from None
    found = content if isinstance(content, dict) else {}
    if found.get("format") != FORMAT or found.get("gpu") != gpu or not isinstance(found.get("tiles"), dict):
        raise ValueError(
            f"got {path.name} that is not format {FORMAT} with tiles of {gpu}; run benchmarks.latency.tune again"
        )
    return tuple((key, checked(path, key, tiles)) for key, tiles in found["tiles"].items())


def checked(path: Path, key: str, tiles: object) -> Tiles:
    allowed = ALLOWED | OPTIONAL
    if not isinstance(tiles, dict) or not ALLOWED.keys() <= tiles.keys() <= allowed.keys():
        names = f"{', '.join(ALLOWED)} and perhaps {', '.join(OPTIONAL)}"
        raise ValueError(f"got {path.name} with {tiles!r} at {key!r}, expected {names}")
    for name, value in tiles.items():
        if value not in allowed[name] or isinstance(value, bool):
            raise ValueError(f"got {path.name} with {name} {value!r} at {key!r}, expected one of {allowed[name]}")
    return Tiles(**tiles)
