"""Perplexity at a context length: rows as in ``benchmarks.perplexity``, with their losses kept for pairing."""

from dataclasses import dataclass

from benchmarks.accuracy.report.scores import Score, perplexity_score
from benchmarks.accuracy.tasks.engine import Engine
from benchmarks.accuracy.tasks.local_data import identity, read_text
from benchmarks.perplexity import rows_of, spread_rows

CHARACTERS_PER_TOKEN = 16  # more than any tokenizer's average, to stop reading endless datasets


@dataclass(frozen=True)
class PerplexityTask:
    """``limit`` whole rows of ``context`` tokens spread evenly over the text, or all of it."""

    text: str
    context: int
    limit: int | None

    name = "perplexity"

    @property
    def tokens(self) -> int:
        return self.context + 1  # vLLM generates one

    def settings(self) -> dict:
        return {"task": self.name, **vars(self), "text": identity(self.text)}

    def run(self, engine: Engine, key: str) -> list[Score]:
        most = self.limit and self.limit * self.context * CHARACTERS_PER_TOKEN
        ids = engine.tokens.encode(read_text(self.text, most))
        rows = rows_of(ids, self.context, engine.tokens.begin)
        if self.limit:
            rows = spread_rows(rows, self.limit)
        return [perplexity_score(key, self.context, engine.losses(rows), [len(row) - 1 for row in rows])]
