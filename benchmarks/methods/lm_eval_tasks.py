"""Tasks of lm-eval on a model whose cache is a method's: a context is compressed up to its last token, and an answer is
scored or decoded after it, so that nothing of it is decided before the cache was read.

Imported only when it is asked for: lm-eval is an optional dependency.
"""

import argparse
import copy
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager
from transformers import Cache, PreTrainedModel

from benchmarks.accuracy.tasks.lm_eval import scores_of
from benchmarks.accuracy.tasks.tokens import Tokens
from benchmarks.methods.harness.interface import expect
from benchmarks.methods.harness.prompts import Arm, Prompt
from benchmarks.methods.harness.retrieval import greedy

MOST_NEW = 256  # tokens of a response where the task does not say


class CompressedLM(TemplateLM):
    """lm-eval's interface to an arm; ``prompt`` runs the ids of a context through the dense model."""

    def __init__(self, arm: Arm, tokens: Tokens, prompt: Callable[[Sequence[int]], Prompt]) -> None:
        super().__init__()
        self.arm, self.tokens, self.prompt = arm, tokens, prompt
        self.longest = arm.model.config.max_position_embeddings

    @property
    def eot_token_id(self) -> int:
        return self.tokens.tokenizer.eos_token_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Without BOS, as lm-eval's own backends."""
        return self.tokens.encode(string)

    def _cache(self, context: Sequence[int]) -> Cache:
        expect(len(context) > 1, "a request of this lm-eval task has no context, so that nothing would be compressed")
        return self.arm.compress([self.prompt(context[:-1])])

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Contexts that follow each other and are the same are compressed once."""
        found = []
        with self.arm.attention():
            for context, same in groupby(requests, key=lambda request: request[1]):
                answers = [answer for _, _, answer in same]
                kept = context[-(self.longest - max(map(len, answers))) :]
                cache = self._cache(kept)
                found += [self._score(copy.deepcopy(cache), kept[-1], answer) for answer in answers]
        return found

    def _score(self, cache: Cache, last: int, answer: list[int]) -> tuple[float, bool]:
        """Its log-likelihood, and whether greedy decoding would give it."""
        step, wanted = torch.tensor([[last, *answer[:-1]]]), torch.tensor(answer)
        found = self.arm.model(step, past_key_values=cache).logits[0].float().log_softmax(-1)
        return found.gather(-1, wanted[:, None]).sum().item(), bool((found.argmax(-1) == wanted).all())

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        raise ValueError("tasks that score a whole text have no context to compress; perplexity is a column already")

    @torch.inference_mode()
    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        found = []
        with self.arm.attention():
            for text, wanted in (request.args for request in requests):
                most = wanted.get("max_gen_toks", MOST_NEW)
                until = wanted.get("until") or []
                stop = (until,) if isinstance(until, str) else tuple(until)
                context = self.tok_encode(text)[-(self.longest - most) :]
                step, cache = torch.tensor([context[-1:]]), self._cache(context)
                found += greedy(self.arm.model, cache, step, self.tokens, most, stop)
        return found


def manager_of(names: Sequence[str], include: Path | None) -> TaskManager:
    """lm-eval's index of tasks, its own ones, which take seconds to read, only if they are needed.

    Raises ValueError for a task that is in neither.
    """
    found = TaskManager(include_path=str(include), include_defaults=False) if include else None
    if found is None or not set(names) <= set(found.all_tasks):
        found = TaskManager(include_path=include and str(include))
    unknown = [name for name in names if name not in found.all_tasks]
    expect(not unknown, f"lm-eval has no task {', '.join(unknown)}; `lm-eval ls tasks` lists them")
    return found


class LMEval:
    """The tasks of ``--lm-eval``, those of ``--lm-eval-include`` among them."""

    def __init__(self, options: argparse.Namespace, dense: PreTrainedModel, tokens: Tokens, dtype: torch.dtype) -> None:
        """Raises ValueError for a task that lm-eval does not know."""
        self.names, self.limit, self.seed = options.lm_eval, options.lm_eval_limit, options.seed
        self.dense, self.tokens, self.dtype = dense, tokens, dtype
        self.manager = manager_of(self.names, options.lm_eval_include)

    def row(self, arm: Arm) -> dict[str, dict[str, dict[str, float]]]:
        """``lm_eval``: every metric of every task. Raises ValueError for a task whose data cannot be had."""
        lm = CompressedLM(arm, self.tokens, lambda ids: Prompt(self.dense, torch.tensor(ids), self.dtype))
        seeds = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
        chosen = {"tasks": list(self.names), "limit": self.limit, "task_manager": self.manager}
        try:
            results = simple_evaluate(model=lm, bootstrap_iters=0, **chosen, **dict.fromkeys(seeds, self.seed))
        except (OSError, ImportError) as error:
            raise ValueError(f"--lm-eval cannot be prepared ({error}); give local tasks, --lm-eval-include") from error
        scores = {task: scores_of("", task, results) for task in results["results"]}
        return {"lm_eval": {task: {score.metric: score.value for score in own} for task, own in scores.items() if own}}
