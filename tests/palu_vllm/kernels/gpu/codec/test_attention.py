"""The Triton kernels, interpreted, give the specification's attention over codes."""

from collections import Counter
from dataclasses import replace
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from palu_vllm.format.codec.layer_codec import LayerCodec
from palu_vllm.kernels.codec.interface import CodecSettings
from palu_vllm.kernels.codec.reference import CodecAttention
from palu_vllm.kernels.gpu.bound import BoundKernel
from palu_vllm.kernels.gpu.codec import attention
from palu_vllm.kernels.gpu.codec.attention import TritonCodecAttention
from palu_vllm.kernels.gpu.codec.decode import decode_codes_kernel
from palu_vllm.kernels.gpu.codec.work import number_items_kernel
from palu_vllm.kernels.gpu.launch import STAND_IN
from palu_vllm.kernels.gpu.prefill.launches import lengths_of
from palu_vllm.kernels.interface import BatchParts
from tests.support.codecs.batches import BLOCKS, FORMATS, WHOLE, attended, batch, cached, random_queries, tokens
from tests.support.codecs.layers import layer_codec
from tests.support.speed.cases import examples

MIXED = ((37, 5, 61, 190, 1, 70), (1, 5, 21, 3, 1, 2))  # decoding, drafts, a chunk of a prompt, a whole one
DECODED = ((37, 120, 1, 70), (1, 3, 1, 2))
BOTH = (TritonCodecAttention, CodecAttention)


def check(
    codec: LayerCodec, layer: CodecSettings, sizes: tuple, dtype: torch.dtype = torch.float32, atol: float = 3e-5
) -> torch.Tensor:
    cache, table = cached(codec, sizes=sizes)
    found, expected = (attended(kind, codec, layer, cache, table, dtype, sizes) for kind in BOTH)
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)
    return found


@pytest.mark.parametrize("name", FORMATS)
def test_every_format(name):
    check(layer_codec(*FORMATS[name]), WHOLE, DECODED)


def test_groups_and_a_batch_of_every_kind():
    check(layer_codec(((16, 4), (15, 3)), ((8, 8), (19, 2)), groups=2), WHOLE, MIXED)


@pytest.mark.parametrize("layer", [
    CodecSettings(4, 0.2, sliding_window=7), CodecSettings(4, 0.2, sliding_window=40),
    CodecSettings(4, 0.2, soft_cap=3.0),
    CodecSettings(4, 0.2, sinks=torch.tensor([0.5, -1.0, 2.0, 30.0])),
    CodecSettings(14, 0.2, sliding_window=33, soft_cap=5.0),
], ids=["window", "long window", "soft cap", "sinks", "seven queries"])  # fmt: skip
def test_settings_are_those_of_the_specification(layer):
    check(layer_codec(((16, 8), (48, 3)), ((40, 4),)), layer, MIXED)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_queries(dtype):
    """The interpreter multiplies bfloat16 as float32, but rounds the output; of float16 queries, weights and levels are
    rounded once each, and scores are about ten.
    """
    check(layer_codec(*FORMATS["tiers"]), WHOLE, MIXED, dtype, 0.02 if dtype == torch.bfloat16 else 0.008)


def test_a_batch_in_passes_is_one_pass(monkeypatch):
    codec = layer_codec(*FORMATS["4 bits"])
    whole = check(codec, WHOLE, MIXED)
    monkeypatch.setattr(attention, "pass_tokens", lambda heads, columns: 10)
    torch.testing.assert_close(check(codec, WHOLE, MIXED), whole, rtol=0, atol=1e-5)


def test_strides_and_wide_blocks_change_nothing():
    codec = layer_codec(*FORMATS["4 bits"])
    cache, table = cached(codec, 32, DECODED)
    expected = attended(TritonCodecAttention, codec, WHOLE, cache, table, sizes=DECODED)
    wide = torch.full((BLOCKS, 32, codec.num_groups, codec.slot.bytes + 12), 255, dtype=torch.uint8)
    strided = wide.transpose(1, 2)[..., : codec.slot.bytes]
    strided.copy_(cache)
    assert torch.equal(attended(TritonCodecAttention, codec, WHOLE, strided, table, sizes=DECODED), expected)
    small, other = cached(codec, 16, DECODED)
    found = attended(TritonCodecAttention, codec, WHOLE, small, other, sizes=DECODED)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_captured_where_no_table_grows():
    """It would be elsewhere than a captured step reads."""
    codec = layer_codec(*FORMATS["tiers"])
    codec = replace(codec, frequencies=codec.frequencies * 0.37)  # that no other layer has
    assert not TritonCodecAttention(codec, WHOLE).captures(1)
    assert TritonCodecAttention(codec, replace(WHOLE, max_seq_len=64)).captures(1)
    assert not CodecAttention(codec, WHOLE).captures(1), "it reads lengths on the host"


def test_requests_of_padding_are_harmless():
    """A graph's batch is padded with requests of no query, whose tables and lengths are any."""
    codec = layer_codec(*FORMATS["4 bits"])
    cache, table = cached(codec, sizes=DECODED)
    query, made = random_queries(codec, WHOLE, DECODED), batch(table, DECODED)
    padded = replace(
        made,
        block_table=torch.nn.functional.pad(table, (0, 0, 0, 2), value=2**30),
        seq_lens=torch.nn.functional.pad(made.seq_lens, (0, 2), value=0),
        query_start_loc=torch.nn.functional.pad(made.query_start_loc, (0, 2), value=len(query)),
    )
    kernel, rows = TritonCodecAttention(codec, WHOLE), torch.nn.functional.pad(query, (0, 0, 0, 0, 0, 3))
    alone, among = query.new_empty(len(query), 4, 32), rows.new_full((len(rows), 4, 32), 7.0)
    kernel.attend(query, cache, made, alone)
    kernel.attend(rows, cache, padded, among)
    assert torch.equal(among[: len(query)], alone) and (among[len(query) :] == 7).all()


def test_layers_of_a_step_share_its_items(monkeypatch):
    """Those with the same window do; a batch that is made anew shares nothing."""
    codec, numbered = layer_codec(*FORMATS["4 bits"]), []
    launch = BoundKernel.launch
    monkeypatch.setattr(
        BoundKernel, "launch", lambda self, *given: (numbered.append(self.kernel), launch(self, *given))
    )
    cache, table = cached(codec, sizes=DECODED)
    query, made = random_queries(codec, WHOLE, DECODED), batch(table, DECODED)
    outs = []
    narrow = replace(WHOLE, sliding_window=9)
    for layer, seen in ((WHOLE, made), (WHOLE, made), (WHOLE, replace(made)), (narrow, made)):
        outs.append(torch.empty(len(query), 4, 32))
        TritonCodecAttention(codec, layer).attend(query, cache, seen, outs[-1])
    assert [numbered.count(number_items_kernel), numbered.count(decode_codes_kernel)] == [3, 4]
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2]) and not torch.equal(outs[0], outs[3])


@pytest.mark.parametrize("queries", [1, 20])
@pytest.mark.parametrize("side", [0, 1], ids=["key", "value"])
def test_a_token_that_is_not_finite_reaches_only_those_that_see_it(side, queries):
    codec = layer_codec(*FORMATS["4 bits"])
    pair = tokens(codec, 40, 2)
    pair[side][30, 0, 3] = torch.inf
    cache = torch.zeros(3, 1, 16, codec.slot.bytes, dtype=torch.uint8)
    kernel = TritonCodecAttention(codec, CodecSettings(4, 0.01))
    kernel.store(*pair, torch.arange(40), cache, torch.arange(40))
    table, query = torch.arange(3, dtype=torch.int32)[None], torch.randn(20, 4, 32)
    for length in range(29, 34) if queries == 1 else [40]:
        out = torch.empty(queries, 4, 32)
        numbers = torch.tensor([length], dtype=torch.int32), torch.tensor([0, queries], dtype=torch.int32)
        kernel.attend(query[:queries], cache, replace(batch(table, ((40,), (1,))), seq_lens=numbers[0],
                      query_start_loc=numbers[1], max_query_len=queries), out)  # fmt: skip
        seen = torch.arange(length - queries, length) >= 30
        assert torch.equal(out.isnan().all((1, 2)), seen) and torch.equal(out.isfinite().all((1, 2)), ~seen)


sides = st.lists(st.tuples(st.integers(1, 24), st.sampled_from((8, 5, 4, 3, 2))), min_size=1, max_size=3)


@settings(max_examples=examples(3, 20))
@given(
    key=sides, value=sides, lengths=st.lists(st.integers(1, 50), min_size=1, max_size=3),
    heads=st.sampled_from((1, 3)), groups=st.sampled_from((1, 3)), window=st.sampled_from((None, 1, 20)),
    data=st.data(),
)  # fmt: skip
def test_any_shape(key, value, lengths, heads, groups, window, data):
    dims = [sum(size for size, _ in side) for side in (key, value)]
    codec = layer_codec(tuple(key), tuple(value), 3, 2 * -(-dims[0] // 2), dims[1], groups)
    queries = tuple(data.draw(st.integers(1, min(length, 12))) for length in lengths)
    check(codec, CodecSettings(3 * heads, 0.2, window), (tuple(lengths), queries))


class Taken(TorchDispatchMode):
    """Counts the tensors that operations return, by shape."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: Counter[tuple[int, ...]] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor):
            self.shapes[tuple(found.shape)] += 1
        return found


def test_what_is_measured_is_what_a_pass_takes():
    """Every matrix of many rows, the pieces of decoding, and no less scratch for prefill."""
    codec = layer_codec(*FORMATS["tiers"])
    cache, table = cached(codec, sizes=MIXED)
    query, made = random_queries(codec, WHOLE, MIXED), batch(table, MIXED)
    out = torch.ones(len(query), WHOLE.num_heads, codec.value.sink.shape[1])
    layer = TritonCodecAttention(codec, replace(WHOLE, max_seq_len=256))  # a table that does not grow
    with Taken() as needed:
        layer.attend(query, cache, made, out)
    with Taken() as measured:
        layer.measure(query, out)
    assert out.count_nonzero() == 0
    lengths = lengths_of(query, made)
    plan = layer.prefill.plan(lengths, query.dtype, STAND_IN)
    scratch = {tuple(each.shape) for each in layer.prefill.scratch(lengths, *plan, query.dtype, query.device)}
    large = {shape for shape in needed.shapes if torch.Size(shape).numel() > 1000 and len(shape) > 1} - scratch
    given = (
        layer.arguments(query, cache, made, query) | layer.prefill.constants | layer.prefill.decoders_of(query.dtype)
    )
    arguments = (*given.values(), query, out)
    copied_by_the_interpreter = {tuple(each.shape) for each in arguments if isinstance(each, torch.Tensor)}
    assert large - copied_by_the_interpreter <= measured.shapes.keys()
    assert len(large) > 4
    assert max(map(prod, scratch)) <= max(map(prod, measured.shapes))


def parts_of(table: torch.Tensor, sizes: tuple, few: int) -> BatchParts:
    """``few`` requests, and the others."""
    parts = [tuple(tuple(side[some]) for side in sizes) for some in (slice(few), slice(few, None))]
    batches = [batch(table[some], part) if part[0] else None
               for some, part in zip((slice(few), slice(few, None)), parts, strict=True)]  # fmt: skip
    return BatchParts(sum(sizes[1][:few]), *batches)


def test_requests_that_come_first_are_decoded_without_the_others():
    """Where the host knows how many these are, queries of prompts are not moved into the basis of codes."""
    codec = layer_codec(((16, 4), (15, 3)), ((8, 8), (19, 2)), groups=2)
    sizes = (37, 5, 1, 61, 190), (1, 5, 1, 21, 70)
    cache, table = cached(codec, sizes=sizes)
    query, made = random_queries(codec, WHOLE, sizes), batch(table, sizes)
    attention_of_layer, outs, turned = TritonCodecAttention(codec, WHOLE), [], []
    into_basis = attention_of_layer.into_basis
    attention_of_layer.into_basis = lambda rows: (turned.append(len(rows)), into_basis(rows))[1]
    for known in (None, parts_of(table, sizes, 3)):
        outs.append(torch.empty(len(query), 4, codec.value.sink.shape[1]))
        attention_of_layer.attend(query, cache, replace(made, parts=known), outs[-1])
    assert turned == [98, 7] and torch.equal(*outs)


def test_prompts_alone_are_not_decoded(monkeypatch):
    codec, sizes = layer_codec(*FORMATS["4 bits"]), ((61, 190), (21, 70))
    cache, table = cached(codec, sizes=sizes)
    query, made = random_queries(codec, WHOLE, sizes), replace(batch(table, sizes), parts=parts_of(table, sizes, 0))
    expected, out = torch.empty(2, len(query), 4, 32)
    TritonCodecAttention(codec, WHOLE).attend(query, cache, batch(table, sizes), expected)
    monkeypatch.setattr(TritonCodecAttention, "decode", None)
    TritonCodecAttention(codec, WHOLE).attend(query, cache, made, out)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("layer", [WHOLE, CodecSettings(4, 0.2, sliding_window=33, soft_cap=5.0),
                                   CodecSettings(4, 0.2, sinks=torch.tensor([0.5, -1.0, 2.0, 30.0]))],
                         ids=["whole", "window and cap", "sinks"])  # fmt: skip
def test_prompts_in_several_workspaces_are_those_in_one(layer):
    codec = layer_codec(*FORMATS["tiers"])
    cache, table = cached(codec, sizes=MIXED)
    query, made = random_queries(codec, layer, MIXED), batch(table, MIXED)
    attention_of_layer, outs = TritonCodecAttention(codec, layer), torch.empty(2, len(query), 4, 32)
    for out, attention_of_layer.prefill.workspace_bytes in zip(outs, (2**26, 1), strict=True):
        attention_of_layer.attend(query, cache, made, out)
    assert torch.equal(*outs)
