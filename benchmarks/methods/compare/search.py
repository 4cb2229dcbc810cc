"""Knobs that meet a budget of bytes: found by filling real stores with the tokens of one real prompt, then chosen by
divergence on text that is not the one to be scored.
"""

from collections.abc import Callable, Iterable

import torch
from transformers import PreTrainedModel

from benchmarks.methods.families import Family
from benchmarks.methods.harness.interface import Method
from benchmarks.methods.harness.measure import Judge
from benchmarks.methods.harness.prompts import Prompt


def largest_fitting(family: Family, learn: Callable[[Method], Method], fits: Callable[[Method], bool]) -> Method | None:
    """The member of the most bytes that fits, after it has learnt; None if none does or knobs do not go together."""
    low, high, best = family.low, family.high, None
    while low <= high:
        middle = (low + high) // 2
        try:
            method = learn(family.make(middle))
            small = fits(method)
        except ValueError:
            return best
        best, low, high = (method, middle + 1, high) if small else (best, low, middle - 1)
    return best


def fitting(
    families: Iterable[Family], learn: Callable[[Method], Method], prompt: Prompt, budget: float
) -> list[Method]:
    """Of each family the largest that takes at most ``1 / budget`` of the dense bytes at the end of the prompt."""
    return list(fitting_by_family(families, learn, prompt, budget).values())


def fitting_by_family(
    families: Iterable[Family], learn: Callable[[Method], Method], prompt: Prompt, budget: float
) -> dict[int, Method]:
    """``fitting``, with the index of the family that each comes from."""
    allowed = prompt.dense_nbytes() / budget
    found = {
        index: largest_fitting(family, learn, lambda each: prompt.nbytes(each) <= allowed)
        for index, family in enumerate(families)
    }
    return {index: method for index, method in found.items() if method is not None}


def closest(methods: list[Method], judge: Judge, model: PreTrainedModel, dtype: torch.dtype) -> Method:
    """That of the lowest divergence. Raises ValueError if there is none."""
    if len(methods) == 1:
        return methods[0]
    return min(methods, key=lambda method: judge.score_method(model, method, dtype)["kl"])
