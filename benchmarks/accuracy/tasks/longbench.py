"""The sixteen English tasks of LongBench (Bai et al. 2023): prompts, lengths of answers and metrics as published.

lm-eval has these tasks, and they are not driven through it: six of its prompts differ from the published ones in white
space, it stops at the first line break where LongBench skips leading ones, and its metrics need three more libraries.

Rows have LongBench's fields; ``question`` may stand for ``input``, as in the copy that is read by default.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.accuracy.report.scores import Score, mean_score
from benchmarks.accuracy.tasks import longbench_metrics as metrics
from benchmarks.accuracy.tasks.engine import Engine
from benchmarks.accuracy.tasks.local_data import identity, is_file, read_rows
from benchmarks.accuracy.tasks.tokens import Tokens

HUB_ID = "Xnhyacinth/LongBench"  # a copy of THUDM/LongBench without its loading script, which datasets refuses
PUBLISHED = json.loads((Path(__file__).parent / "longbench_prompts.json").read_text(encoding="utf-8"))["tasks"]
LONGBENCH_TASKS = tuple(PUBLISHED)
FIRST_LINE = ("trec", "triviaqa", "samsum")  # their answers are one line
WITHOUT_CHAT = (*FIRST_LINE, "lcc", "repobench-p")  # continuations: no chat template around them
METRICS: Mapping[str, Callable[..., float]] = {
    "f1": metrics.qa_f1,
    "rouge-l": metrics.rouge_l,
    "classification": metrics.classification,
    "retrieval": metrics.retrieval,
    "count": metrics.count,
    "edit similarity": metrics.code_similarity,
}


def truncate_middle(ids: list[int], limit: int) -> list[int]:
    """The first and the last ``limit // 2`` of more than ``limit`` ids."""
    return ids if len(ids) <= limit else ids[: limit // 2] + ids[len(ids) - limit // 2 :]


def score(task: str, response: str, row: Mapping[str, Any]) -> float:
    """The best over the references of a row."""
    if task in FIRST_LINE:
        response = response.lstrip("\n").split("\n")[0]
    metric = METRICS[PUBLISHED[task]["metric"]]
    return max(metric(response, answer, row.get("all_classes") or ()) for answer in row["answers"])


@dataclass(frozen=True)
class LongBenchTask:
    """One task, on the rows of ``data``: a hub id, a folder of ``TASK.jsonl``, or one such file."""

    task: str
    data: str
    max_length: int
    limit: int | None
    chat: bool

    @property
    def name(self) -> str:
        return f"longbench/{self.task}"

    @property
    def tokens(self) -> int:
        return self.max_length

    @property
    def file(self) -> Path:
        path = Path(self.data)
        return path / f"{self.task}.jsonl" if path.is_dir() else path

    def settings(self) -> dict:
        return {"task": self.name, **vars(self), "data": identity(str(self.file))}

    def rows(self) -> list[dict[str, Any]]:
        """Raises ValueError for rows without the fields, and for a hub that does not give the dataset."""
        if is_file(str(self.file)):
            return read_rows(self.file, ("context", "answers"))[: self.limit]
        from datasets import load_dataset

        try:
            return list(load_dataset(self.data, self.task, split="test"))[: self.limit]
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"the hub does not give {self.data} {self.task} ({error}); give local files.") from error

    def prompt(self, tokens: Tokens, row: Mapping[str, Any]) -> list[int]:
        """Truncated in the middle before the chat template goes around it, and BOS in front."""
        asked = row.get("input", row.get("question", ""))
        text = PUBLISHED[self.task]["prompt"].replace("{input}", asked).replace("{context}", row["context"])
        front, back = tokens.wrap("", "", self.chat and self.task not in WITHOUT_CHAT)
        room = self.max_length - PUBLISHED[self.task]["max_tokens"] - len(front) - len(back)
        if room < 2:
            raise ValueError(f"a context of {self.max_length} is too short for {self.name} and its answer.")
        return front + truncate_middle(tokens.encode(text), room) + back

    def run(self, engine: Engine, key: str) -> list[Score]:
        rows = self.rows()
        published = PUBLISHED[self.task]
        responses = engine.generate([self.prompt(engine.tokens, row) for row in rows], published["max_tokens"])
        values = [score(self.task, response, row) for response, row in zip(responses, rows, strict=True)]
        return [mean_score(key, self.name, published["metric"], values)]
