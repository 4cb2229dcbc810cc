"""Watches how far live text is from what a codec was made on: a few stored tokens, now and then."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

import torch
from vllm.logger import init_logger

from palu_vllm.format.codec.drift import token_drift
from palu_vllm.format.codec.layer_codec import LayerCodec

SETTING = "drift"
LEAST_TOKENS = 256  # below which nothing is warned of
logger = init_logger("vllm.palu")  # vLLM prints nothing of loggers that are not below its own


@dataclass(frozen=True)
class DriftOptions:
    """What ``--additional-config '{"palu": {"drift": {...}}}'`` may say. Raises ValueError, one sentence."""

    seconds: float = 10.0  # between samples at least; 0: one of every step
    tokens: int = 16  # of a sample at most
    half_life: int = 1024  # tokens after which a sample counts half
    warn_above: float = 1.3  # of the mean over layers, times that of the calibration

    def __post_init__(self) -> None:
        least = {"seconds": 0, "tokens": 1, "half_life": 1, "warn_above": 0}
        for name, low in least.items():
            value = getattr(self, name)
            number = int if name in ("tokens", "half_life") else int | float
            if not isinstance(value, number) or isinstance(value, bool) or value < low:
                raise ValueError(f"--additional-config has {name}={value!r} for drift; expected {low} or more.")

    @classmethod
    def of(cls, said: Any) -> Self | None:
        """Of the setting ``drift``: None for ``false``, which watches nothing."""
        if said is False:
            return None
        known = [each.name for each in fields(cls)]
        if not isinstance(said, Mapping) or set(said) - set(known):
            raise ValueError(
                f"--additional-config has {SETTING}={said!r} for palu; expected false or some of {', '.join(known)}."
            )
        return cls(**said)


@dataclass
class Sample:
    """The tokens of a step that are looked at, and what layers have found: float32 ``[2, tokens]``, NaN for none."""

    rows: slice
    found: dict[str, torch.Tensor] = field(default_factory=dict)


def stored_drift(
    codec: LayerCodec,
    key: torch.Tensor,
    value: torch.Tensor,
    positions: torch.Tensor,
    cache: torch.Tensor,
    slot_mapping: torch.Tensor,
) -> torch.Tensor:
    """``token_drift`` of tokens that were stored in ``cache``, see ``kernels.codec.interface``; NaN for padding."""
    numbers = slot_mapping.clamp(min=0)
    slots = cache[numbers // cache.shape[2], :, numbers % cache.shape[2]]
    return token_drift(codec, key, value, slots, positions).masked_fill(slot_mapping < 0, torch.nan)


class DriftWatch:
    """Chooses samples and keeps a running mean of every layer, of K and V, that forgets by ``half_life`` tokens.

    ``usual`` are the errors of text like the calibration's, ``{layer: [of keys, of values]}``; errors are counted in
    them, in those of unit Gaussians where it is empty, and then nothing is warned of. ``publish`` gets the ratios in
    the same form after every sample, NaN where nothing is known, and how many tokens were looked at.
    """

    def __init__(
        self,
        options: DriftOptions,
        usual: Mapping[str, list[float]],
        publish: Callable[[Mapping[str, list[float]], int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options, self._usual, self._publish, self._clock = options, usual, publish, clock
        self._due, self._tokens, self._may_warn = clock(), 0, bool(usual)
        self._open: Sample | None = None
        self._sums: dict[str, torch.Tensor] = {}  # [2 (errors, tokens), 2 (keys, values)] float64

    def sample(self, tokens: int) -> Sample | None:
        """What to look at in a step of ``tokens``, None for nothing. Takes in the sample before it, which is done."""
        self._take_in()
        now = self._clock()
        if not tokens or now < self._due:
            return None
        self._due = now + self._options.seconds
        self._open = Sample(slice(0, tokens, -(-tokens // self._options.tokens)))
        return self._open

    def _take_in(self) -> None:
        """Waits for the device, once a sample."""
        done, self._open = self._open, None
        if done is None or not done.found:
            return
        errors = torch.stack(tuple(done.found.values())).double().cpu()  # [layers, 2, tokens]
        seen = errors.isfinite()
        if not seen.any():
            return
        counts, totals = seen.sum(-1), errors.masked_fill(~seen, 0.0).sum(-1)
        for layer, total, count in zip(done.found, totals, counts, strict=True):
            kept = 0.5 ** (int(count.max()) / self._options.half_life)
            before = self._sums.get(layer, torch.zeros(2, 2, dtype=torch.float64))
            usual = torch.tensor(self._usual.get(layer, (1.0, 1.0)), dtype=torch.float64)
            self._sums[layer] = kept * before + torch.stack((total / usual, count))
        self._tokens += int(counts.max())
        self._publish({layer: (sums[0] / sums[1]).tolist() for layer, sums in self._sums.items()}, self._tokens)
        self._warn()

    def _warn(self) -> None:
        """Once, where the mean over layers is above the threshold."""
        ratios = torch.stack([sums[0] / sums[1] for sums in self._sums.values()])
        mean = float(ratios.nanmean())
        if not self._may_warn or self._tokens < LEAST_TOKENS or not mean > self._options.warn_above:
            return
        self._may_warn = False
        logger.warning(
            "the text that is served has %.2f times the coding error of the codec's calibration (above %.2f): judge "
            "it with `palu-doctor MODEL --codec OUT --text FILE`, and calibrate on text like it with palu-calibrate.",
            mean,
            self._options.warn_above,
        )
