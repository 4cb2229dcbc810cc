"""The command line of ``python -m benchmarks.accuracy``, and the tasks that it asks for."""

import argparse
from collections.abc import Iterator
from typing import Protocol

from benchmarks.accuracy.report.scores import Score
from benchmarks.accuracy.tasks.engine import Engine
from benchmarks.accuracy.tasks.lm_eval import LMEvalTask
from benchmarks.accuracy.tasks.longbench import HUB_ID, LONGBENCH_TASKS, LongBenchTask
from benchmarks.accuracy.tasks.needle import NeedleTask
from benchmarks.accuracy.tasks.needle_styles import needle_style
from benchmarks.accuracy.tasks.perplexity import PerplexityTask
from benchmarks.accuracy.tasks.ruler import RULER_TASKS, RulerTask
from benchmarks.accuracy.tasks.ruler_styles import RULER_STYLES


class Task(Protocol):
    """Something to measure. ``settings`` decides its key; ``tokens`` is the context that it needs."""

    @property
    def name(self) -> str: ...

    @property
    def tokens(self) -> int: ...

    def settings(self) -> dict: ...

    def run(self, engine: Engine, key: str) -> list[Score]: ...


def numbers(text: str) -> tuple[int, ...]:
    """``1024,2048``."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers like 1024,2048") from error


def names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def task_parser() -> argparse.ArgumentParser:
    """The options that ``run`` and ``compare`` share."""
    parser = argparse.ArgumentParser(add_help=False)
    add = parser.add_argument
    add("--tasks", type=names, default=("perplexity", "needle"), help=f"of {', '.join(BUILDERS)}; separated by commas")
    add("--dtype", default="auto", help="as vLLM's --dtype")
    add("--kv-cache-dtype", default="auto", help="as vLLM's --kv-cache-dtype")
    add("--max-length", type=int, help="the longest context to serve (default: the model's)")
    add("--limit", type=int, help="rows of text or documents per task (default: all)")
    add("--samples", type=int, default=10, help="needle: prompts per cell; ruler: per length")
    add("--seed", type=int, default=0, help="chooses haystacks, keys and values")
    add("--chat", action="store_true", help="prompts as a turn of the model's chat template")
    add("--text", default="wikitext2", help="perplexity: file or hub dataset (wikitext2 and c4 are held-out splits)")
    add("--contexts", type=numbers, default=(1024, 2048), help="perplexity: tokens per row")
    add("--haystack", default="baber/paul_graham_essays", help="needle and ruler: file or hub dataset")
    add("--lengths", type=numbers, default=(1024, 2048, 4096), help="needle and ruler: tokens, response included")
    add("--depths", type=numbers, default=(0, 25, 50, 75, 100), help="needle: per cent")
    add("--needle-style", default="usual", help="usual, demo, or a JSON file")
    add("--ruler-tasks", type=names, default=RULER_TASKS, help=f"of {', '.join(RULER_TASKS)}")
    add("--ruler-style", default="published", help=f"of {', '.join(RULER_STYLES)}")
    add("--longbench-tasks", type=names, default=LONGBENCH_TASKS, help=f"of {', '.join(LONGBENCH_TASKS)}")
    add("--longbench-data", default=HUB_ID, help="hub dataset, folder of TASK.jsonl, or one such file")
    add("--lm-eval-tasks", type=names, default=(), help="names of lm-eval's tasks")
    add("--lm-eval-data", nargs="*", default=[], metavar="TASK=FILE", help="jsonl rows instead of the task's own")
    add("--num-fewshot", type=int, help="lm-eval: examples in front (default: the task's)")
    return parser


def known(option: str, given: tuple[str, ...], allowed: tuple[str, ...]) -> tuple[str, ...]:
    """``given``, if all are allowed. Raises ValueError otherwise."""
    unknown = [name for name in given if name not in allowed]
    if unknown or not given:
        raise ValueError(f"{option}: {', '.join(unknown) or 'nothing'} is unknown; expected {', '.join(allowed)}.")
    return given


def perplexity_tasks(options: argparse.Namespace, length: int) -> Iterator[Task]:
    for context in options.contexts:
        yield PerplexityTask(options.text, context, options.limit)


def needle_tasks(options: argparse.Namespace, length: int) -> Iterator[Task]:
    style = needle_style(options.needle_style)
    grid = (options.lengths, options.depths, options.samples)
    yield NeedleTask(options.haystack, style, *grid, options.seed, options.chat)


def ruler_tasks(options: argparse.Namespace, length: int) -> Iterator[Task]:
    known("--ruler-style", (options.ruler_style,), tuple(RULER_STYLES))
    for kind in known("--ruler-tasks", options.ruler_tasks, RULER_TASKS):
        grid = (options.ruler_style, options.lengths, options.samples)
        yield RulerTask(kind, options.haystack, *grid, options.seed, options.chat)


def longbench_tasks(options: argparse.Namespace, length: int) -> Iterator[Task]:
    for task in known("--longbench-tasks", options.longbench_tasks, LONGBENCH_TASKS):
        yield LongBenchTask(task, options.longbench_data, length, options.limit, options.chat)


def lm_eval_tasks(options: argparse.Namespace, length: int) -> Iterator[Task]:
    files = dict(entry.partition("=")[::2] for entry in options.lm_eval_data)
    wanted = tuple(dict.fromkeys((*options.lm_eval_tasks, *files)))
    if not wanted:
        raise ValueError("--tasks lm-eval needs --lm-eval-tasks or --lm-eval-data.")
    for task in wanted:
        yield LMEvalTask(task, files.get(task), options.num_fewshot, length, options.limit, options.seed, options.chat)


BUILDERS = {
    "perplexity": perplexity_tasks,
    "needle": needle_tasks,
    "ruler": ruler_tasks,
    "longbench": longbench_tasks,
    "lm-eval": lm_eval_tasks,
}


def tasks_of(options: argparse.Namespace, model: str, context: int) -> list[Task]:
    """What is to be measured, in order. Raises ValueError for unknown names and for contexts beyond the model's."""
    length = options.max_length or context
    if length > context:
        raise ValueError(f"--max-length {length} is beyond the context of {model}, {context} tokens.")
    if options.samples < 1 or (options.limit is not None and options.limit < 1):
        raise ValueError("--samples and --limit are at least 1.")
    if not all(0 <= depth <= 100 for depth in options.depths):
        raise ValueError("--depths are per cent, from 0 to 100.")
    chosen = known("--tasks", options.tasks, tuple(BUILDERS))
    tasks = [task for name in chosen for task in BUILDERS[name](options, length)]
    for task in tasks:
        if task.tokens > length:
            raise ValueError(f"{task.name} needs a context of {task.tokens} tokens; {model} is served with {length}.")
    return tasks


def flags_of(options: argparse.Namespace) -> list[str]:
    """The shared options again as a command line, those at their defaults left out."""
    flags = []
    for name, default in vars(task_parser().parse_args([])).items():
        value = getattr(options, name)
        if value == default:
            continue
        listed = [str(part) for part in value] if isinstance(value, list) else []
        joined = [",".join(map(str, value))] if isinstance(value, tuple) else [str(value)]
        flags += ["--" + name.replace("_", "-"), *([] if value is True else listed or joined)]
    return flags
