"""Any task of lm-eval, through its vLLM backend and by its own metrics and standard errors."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import isclose
from pathlib import Path
from typing import Any

from benchmarks.accuracy.report.scores import LM_EVAL, Score, mean_score
from benchmarks.accuracy.tasks.engine import Engine
from benchmarks.accuracy.tasks.local_data import identity, read_rows


@cache
def task_manager() -> Any:
    """lm-eval's index of tasks, which takes seconds to make."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


@dataclass(frozen=True)
class LMEvalTask:
    """A task, group or tag by its name in lm-eval; with ``data``, on the rows of a jsonl file instead of its own."""

    task: str
    data: str | None
    num_fewshot: int | None
    max_length: int
    limit: int | None
    seed: int
    chat: bool

    @property
    def name(self) -> str:
        return f"lm-eval/{self.task}"

    @property
    def tokens(self) -> int:
        return self.max_length

    def settings(self) -> dict:
        return {"task": self.name, **vars(self), "data": identity(self.data) if self.data else None}

    def spec(self, index: Mapping[str, Any], folder: Path) -> str:
        """The name; with ``data`` a file in ``folder`` that includes lm-eval's task and replaces its data."""
        if self.data is None:
            return self.task
        read_rows(Path(self.data), ())
        splits = {"test_split": "test", "validation_split": None, "training_split": None, "fewshot_split": "test"}
        files = {"data_files": {"test": str(Path(self.data).resolve())}}
        source = {"include": str(index[self.task].yaml_path), "task": self.task}
        data = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": files}
        file = folder / "task.yaml"
        file.write_text(json.dumps(source | data | splits), encoding="utf-8")  # JSON is YAML
        return str(file)

    def _evaluate(self, engine: Engine, task: str) -> Mapping[str, Any]:
        from lm_eval import simple_evaluate

        seeds = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
        try:
            return simple_evaluate(
                model=engine.lm,
                tasks=[task],
                num_fewshot=self.num_fewshot,
                limit=self.limit,
                task_manager=task_manager(),
                apply_chat_template=self.chat,
                **dict.fromkeys(seeds, self.seed),
            )
        except (OSError, ImportError) as error:
            raise ValueError(f"{self.name} cannot be prepared ({error}); give it local data.") from error

    def run(self, engine: Engine, key: str) -> list[Score]:
        """Raises ValueError for a task that lm-eval does not know or whose data cannot be had."""
        manager = task_manager()
        if self.task not in manager.all_tasks:
            raise ValueError(f"lm-eval has no task {self.task}; `lm-eval ls tasks` lists them.")
        if self.data and self.task not in manager.all_subtasks:
            raise ValueError(f"lm-eval's {self.task} is a group; give local data to its tasks one by one.")
        with tempfile.TemporaryDirectory(prefix="palu-lm-eval-") as folder:
            task = self.spec(manager.task_index, Path(folder))
            results = self._evaluate(engine, task)
        return [score for task in results["results"] for score in scores_of(key, task, results)]


def scores_of(key: str, task: str, results: Mapping[str, Any]) -> list[Score]:
    """Every metric of one task. A mean over documents keeps its rows; of others only lm-eval's numbers are known."""
    scores = []
    reported = results["results"][task]
    count = results.get("n-samples", {}).get(task, {}).get("effective", reported.get("sample_len", 0))
    for entry, value in reported.items():
        metric, _, filtered = entry.partition(",")
        if not filtered or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        title = metric if filtered == "none" else f"{metric} ({filtered})"
        better = bool(results["higher_is_better"].get(task, {}).get(metric, True))
        rows = rows_of_metric(results.get("samples", {}).get(task, ()), metric, filtered)
        if better and rows and isclose(sum(rows) / len(rows), value, abs_tol=1e-9):
            scores.append(mean_score(key, f"lm-eval/{task}", title, rows))
            continue
        stderr = reported.get(f"{metric}_stderr,{filtered}")
        error = stderr if isinstance(stderr, int | float) else None
        scores.append(Score(key, f"lm-eval/{task}", title, {}, float(value), error, LM_EVAL, int(count), better))
    return scores


def rows_of_metric(samples: Sequence[Mapping[str, Any]], metric: str, filtered: str) -> list[float]:
    """The metric of each document, in their order, if it is a number for each."""
    ours = [sample for sample in samples if sample.get("filter", "none") == filtered]
    values = [sample.get(metric) for sample in sorted(ours, key=lambda sample: sample["doc_id"])]
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    return numbers if len(numbers) == len(values) else []
