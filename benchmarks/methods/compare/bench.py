"""What every row of a comparison shares: the model, what it is scored on and asked about, and what methods learn."""

import argparse
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from benchmarks.accuracy.tasks.tokens import Tokens
from benchmarks.methods.harness import retrieval
from benchmarks.methods.harness.interface import Method
from benchmarks.methods.harness.measure import Judge
from benchmarks.methods.harness.prompts import Arm, Prompt
from benchmarks.methods.harness.retrieval import ASKED, DEPTHS, Questions, Quiz
from benchmarks.methods.registry import described
from benchmarks.quality.held_out import rows_of_text
from palu_vllm.format.checkpoint import read_json

if TYPE_CHECKING:
    from benchmarks.methods.lm_eval_tasks import LMEval

Row = dict[str, Any]
TUNE_NEW_TOKENS = 32


def dtype_of(model: Path) -> torch.dtype:
    """That of the checkpoint."""
    config = read_json(model / "config.json")
    return getattr(torch, config.get("dtype") or config["torch_dtype"])


def learner(model: PreTrainedModel, rows: torch.Tensor) -> Callable[[Method], Method]:
    """``calibrated`` on ``rows``; every lesson is studied once, and every setting taught once."""
    lessons: dict[Hashable, Any] = {}
    taught: dict[str, Method] = {}

    def learn(method: Method) -> Method:
        lesson, setting = (type(method), method.lesson), described(method)
        if lesson not in lessons:
            lessons[lesson] = method.studied(model, rows)
        if setting not in taught:
            taught[setting] = method.taught(lessons[lesson])
        return taught[setting]

    return learn


def questions(options: argparse.Namespace, tokens: Tokens) -> dict[str, Questions]:
    """One column each, ``--needles`` questions or a few more; none if it is 0."""
    count, length, text, seed = options.needles, options.prompt_tokens, str(options.text), options.seed
    if not count:
        return {}
    spread = -(-count // len(DEPTHS))
    return {
        "recall": retrieval.recall(tokens, text, length, -(-count // ASKED), seed),
        "needle": retrieval.needles(tokens, text, options.needle_style, (length,), DEPTHS, spread, seed),
        "ruler": retrieval.ruler(tokens, text, options.ruler_task, options.ruler_style, length, count, seed),
    }


def lm_eval_of(
    options: argparse.Namespace, dense: PreTrainedModel, tokens: Tokens, dtype: torch.dtype
) -> "LMEval | None":
    """The tasks that were asked for; lm-eval, an optional dependency, is imported only then."""
    if not options.lm_eval:
        return None
    from benchmarks.methods.lm_eval_tasks import LMEval

    return LMEval(options, dense, tokens, dtype)


@dataclass(frozen=True)
class Bench:
    """``prompt`` is calibration text to fill stores with; ``tuner`` chooses knobs there, ``judge`` scores elsewhere."""

    dense: PreTrainedModel
    dtype: torch.dtype
    tokens: Tokens
    prompt: Prompt
    tuner: Judge
    judge: Judge
    learn: Callable[[Method], Method]
    quizzes: dict[str, Quiz]
    lm_eval: "LMEval | None"

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Bench":
        """Raises ValueError where questions do not fit the prompt, and for unknown tasks of lm-eval."""
        dtype = dtype_of(options.model)
        dense = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
        tokens, length = Tokens(AutoTokenizer.from_pretrained(options.model)), options.prompt_tokens
        context = length + options.new_tokens
        calibration = rows_of_text(options.model, options.calib_data, context, options.calib_samples)
        tuning = calibration[: options.tune_rows, : length + min(TUNE_NEW_TOKENS, options.new_tokens)]
        return cls(
            dense=dense,
            dtype=dtype,
            tokens=tokens,
            prompt=Prompt(dense, calibration[0, :length], dtype),
            tuner=Judge(dense, tuning, length),
            judge=Judge(dense, rows_of_text(options.model, options.text, context, options.rows), length),
            learn=learner(dense, calibration),
            quizzes={name: Quiz(dense, tokens, each, dtype) for name, each in questions(options, tokens).items()},
            lm_eval=lm_eval_of(options, dense, tokens, dtype),
        )

    def score(self, arm: Arm) -> Row:
        """What ``Judge`` says, the share of right answers in each column of questions, and lm-eval's tasks."""
        found = {name: quiz.found(arm) for name, quiz in self.quizzes.items()}
        shares = {name: sum(each) / len(each) for name, each in found.items()}
        return self.judge.score_arm(arm) | shares | (self.lm_eval.row(arm) if self.lm_eval else {})
