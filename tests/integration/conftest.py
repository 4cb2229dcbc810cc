"""The batches that the backend really got, for tests that must show what was scheduled."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from palu_vllm.attention_backend.metadata import PaluMetadataBuilder


@dataclass(frozen=True)
class Row:
    """One request of one batch."""

    query_len: int
    seq_len: int

    @property
    def is_decode(self) -> bool:
        return self.query_len == 1 and self.seq_len > 1

    @property
    def is_first_chunk(self) -> bool:
        return 1 < self.query_len == self.seq_len

    @property
    def is_continuation(self) -> bool:
        return 1 < self.query_len < self.seq_len


def watched_batches(monkeypatch: pytest.MonkeyPatch) -> list[list[Row]]:
    """A list that grows by every batch from now on, once per KV cache spec, watched and not changed."""
    seen: list[list[Row]] = []
    build = PaluMetadataBuilder.build

    def watched(self, common_prefix_len, common_attn_metadata, fast_build=False):
        lengths = common_attn_metadata.query_start_loc.diff().tolist()
        seen.append([Row(*pair) for pair in zip(lengths, common_attn_metadata.seq_lens.tolist(), strict=True)])
        return build(self, common_prefix_len, common_attn_metadata, fast_build)

    monkeypatch.setattr(PaluMetadataBuilder, "build", watched)
    return seen


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[Row]]]:
    """Every batch since the start of the test."""
    yield watched_batches(monkeypatch)
