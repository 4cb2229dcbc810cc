"""LongBench's metrics for its English tasks, each in [0, 1] for a response and one reference (Bai et al. 2023).

Two stand on other libraries than the published ``rouge`` and ``fuzzywuzzy``, which are no longer kept: ROUGE-L is
rouge-score's (lower case, letters and digits only), edit similarity is difflib's ratio, to which fuzzywuzzy falls back.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher

from rouge_score.rouge_scorer import RougeScorer


def words_of(text: str) -> list[str]:
    """Lower-case words without punctuation and articles (the normalization of SQuAD)."""
    letters = "".join(character for character in text.lower() if character not in string.punctuation)
    return [word for word in letters.split() if word not in ("a", "an", "the")]


def qa_f1(response: str, reference: str, classes: Sequence[str] = ()) -> float:
    """Harmonic mean of precision and recall of words, with multiplicity."""
    given, wanted = words_of(response), words_of(reference)
    common = (Counter(given) & Counter(wanted)).total()
    return 2 * common / (len(given) + len(wanted)) if common else 0.0


def rouge_l(response: str, reference: str, classes: Sequence[str] = ()) -> float:
    """F-measure of the longest common subsequence of words."""
    return RougeScorer(["rougeL"]).score(reference, response)["rougeL"].fmeasure


def classification(response: str, reference: str, classes: Sequence[str] = ()) -> float:
    """1 over the number of classes that the response names, if the right one is among them.

    A class whose name is part of the right one's does not count (the published loop misses some of these).
    """
    named = [name for name in classes if name in response and (name == reference or name not in reference)]
    return 1 / len(named) if reference in named else 0.0


def share_of_numbers(response: str, number: str) -> float:
    numbers = re.findall(r"\d+", response)
    return numbers.count(number) / len(numbers) if numbers else 0.0


def retrieval(response: str, reference: str, classes: Sequence[str] = ()) -> float:
    """The share of numbers in the response that are the one of ``Paragraph N``. Raises ValueError without one."""
    found = re.search(r"Paragraph (\d+)", reference)
    if not found:
        raise ValueError(f"the answer {reference!r} of a retrieval task is not of the form 'Paragraph N'.")
    return share_of_numbers(response, found[1])


def count(response: str, reference: str, classes: Sequence[str] = ()) -> float:
    """The share of numbers in the response that are the right one."""
    return share_of_numbers(response, reference)


def code_similarity(response: str, reference: str, classes: Sequence[str] = ()) -> float:
    """Edit similarity, to two digits, of the first line that is neither a fence nor a comment."""
    lines = response.lstrip("\n").split("\n")
    code = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    return round(100 * SequenceMatcher(None, code, reference).ratio()) / 100
