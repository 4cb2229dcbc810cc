"""Bits for every layer, K and V: the least sum of losses within a budget of bytes, with few distinct formats.

Bits of all layers have one price per byte in loss, found by bisection (Shoham and Gersho, Efficient bit allocation for
an arbitrary set of quantizers, 1988). Distinct formats are slots, a format of K with one of V: kernels are compiled per
slot. The few are chosen greedily among the best slots of single layers.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from offline_compress.codec.basis import Basis
from offline_compress.run.errors import CompressionError
from palu_vllm.format.codec.levels import UNQUANTIZED, distortion
from palu_vllm.format.kv import KV
from palu_vllm.format.latent_format import CodedFormat, CodedSlot, Tier

# codes of 1 bit lose on text that is unlike the calibration's: docs/results/judge.md
TIER_BITS = (8, 5, 4, 3, 2)
STEPS = ((64, 8), (256, 16), (512, 32))  # up to a width, tiers end at multiples of so many numbers; then of 64
BISECTIONS = 60


@dataclass(frozen=True)
class Menu:
    """All formats of one width with their numbers, their bytes ``[formats]``, and numbers by ``TIER_BITS``."""

    formats: dict[CodedFormat, int]
    bytes: np.ndarray
    sizes: np.ndarray  # [formats, tiers]

    @property
    def width(self) -> int:
        return next(iter(self.formats)).rank

    def losses(self, of: Basis) -> np.ndarray:
        """What each costs, ``[formats]``."""
        sums = np.concatenate([np.zeros((len(of.variances), 1)), np.cumsum(of.variances.sqrt().numpy(), 1)], 1)
        ends = self.sizes.cumsum(1)
        parts = sums[:, ends] - sums[:, ends - self.sizes]  # [groups, formats, tiers]
        means = (parts**2).sum(0) / np.maximum(self.sizes, 1)
        return means @ np.array([0.5 * distortion(bits) for bits in TIER_BITS])


@cache
def menu(width: int) -> Menu:
    """Tiers of falling bits that end at multiples of a step, but for the last; nothing is cut."""
    step = next((step for widest, step in STEPS if width <= widest), 64)
    whole, rest = divmod(width, step)
    formats, rows = [], []
    for sizes in itertools.product(range(whole + 1), repeat=len(TIER_BITS) - 1):
        last = whole - sum(sizes)
        if last < 0:
            continue
        counts = [size * step for size in (*sizes, last)]
        counts[-1] += rest
        tiers = tuple(Tier(count, bits) for count, bits in zip(counts, TIER_BITS, strict=True) if count)
        formats.append(CodedFormat(tiers))
        rows.append(counts)
    numbers = {form: number for number, form in enumerate(formats)}
    return Menu(numbers, np.array([form.bytes for form in formats]), np.array(rows))


def unquantized(width: int) -> CodedFormat:
    """16 bits."""
    return CodedFormat((Tier(width, UNQUANTIZED),))


class Layer:
    """One layer's losses of every format of K and of V, ``ratio`` times what its moments say."""

    def __init__(self, bases: KV[Basis], ratio: float = 1.0) -> None:
        self.groups = len(bases.key.variances)
        self.menus = bases.map(lambda each: menu(each.width))
        self.losses = KV(*(ratio * menu.losses(each) for menu, each in zip(self.menus, bases, strict=True)))

    def best(self, price: float) -> CodedSlot:
        """The slot of least loss and cost."""
        return CodedSlot(*(
            list(menu.formats)[int((losses + price * self.groups * menu.bytes).argmin())]
            for menu, losses in zip(self.menus, self.losses, strict=True)
        ))  # fmt: skip

    def loss(self, slot: CodedSlot) -> float:
        """What a slot costs; infinite where it does not fit."""
        found = 0.0
        for menu, losses, form in zip(self.menus, self.losses, (slot.key, slot.value), strict=True):
            number = menu.formats.get(form)
            found += float("inf") if number is None else float(losses[number])
        return found


@dataclass(frozen=True)
class Allocation:
    """The slot of every layer, and what it loses per token."""

    slots: tuple[CodedSlot, ...]
    losses: tuple[float, ...]

    @property
    def loss(self) -> float:
        """Of all layers."""
        return sum(self.losses)

    @classmethod
    def of(cls, layers: Sequence[Layer], slots: Sequence[CodedSlot]) -> "Allocation":
        return cls(tuple(slots), tuple(layer.loss(slot) for layer, slot in zip(layers, slots, strict=True)))


def allocate(layers: Sequence[Layer], budget: float, max_formats: int) -> Allocation:
    """Slots of at most ``budget`` bytes per token, as few distinct as asked for, of the least loss.

    Raises CompressionError where even the smallest slots are too large.
    """
    low, high, found = 1e-20, 1e6, None
    for _ in range(BISECTIONS):
        price = float(np.sqrt(low * high))
        tried = _priced(layers, price, max_formats)
        if _bytes(layers, tried.slots) <= budget:
            found = tried if found is None or tried.loss < found.loss else found
            high = price
        else:
            low = price
    if found is None:
        smallest = _bytes(layers, [layer.best(1e6) for layer in layers])
        raise CompressionError(
            f"a token gets {budget:.0f} bytes, and 2 bits per number take {smallest}; ask for less compression."
        )
    return _filled(layers, found, budget)


def _filled(layers: Sequence[Layer], found: Allocation, budget: float) -> Allocation:
    """Layers take larger slots of those in use, the one that gains most per byte first, while bytes are left."""
    slots = list(found.slots)
    while True:
        left = budget - _bytes(layers, slots)
        steps = [
            ((layer.loss(slots[number]) - layer.loss(slot)) / more, number, slot)
            for number, layer in enumerate(layers)
            for slot in dict.fromkeys(found.slots)
            if 0 < (more := layer.groups * (slot.bytes - slots[number].bytes)) <= left
        ]
        gain, number, slot = max(steps, key=lambda step: step[0], default=(0.0, 0, found.slots[0]))
        if gain <= 0:
            return Allocation.of(layers, slots)
        slots[number] = slot


def _bytes(layers: Sequence[Layer], slots: Sequence[CodedSlot]) -> int:
    return sum(layer.groups * slot.bytes for layer, slot in zip(layers, slots, strict=True))


def _priced(layers: Sequence[Layer], price: float, max_formats: int) -> Allocation:
    """Every layer takes the cheapest of a few slots."""
    candidates = list(dict.fromkeys(layer.best(price) for layer in layers))
    costs = np.array(
        [[layer.loss(slot) + price * layer.groups * slot.bytes for slot in candidates] for layer in layers]
    )
    kept: list[int] = []
    while len(kept) < min(max(max_formats, _widths(layers)), len(candidates)):
        reached = costs[:, kept].min(1, initial=np.inf)
        totals = [np.minimum(reached, np.minimum(costs[:, each], 1e300)).sum() for each in range(len(candidates))]
        kept.append(int(np.argmin(totals)))
    slots = tuple(candidates[kept[int(row[kept].argmin())]] for row in costs)
    return Allocation.of(layers, slots)


def _widths(layers: Sequence[Layer]) -> int:
    """How many slots layers of different widths need at least."""
    return len({layer.menus.map(lambda each: each.width) for layer in layers})
