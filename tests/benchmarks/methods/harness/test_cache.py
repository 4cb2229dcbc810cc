"""What holds of every method, through transformers."""

import pytest
import torch

from benchmarks.methods.harness.attention import IMPLEMENTATION
from benchmarks.methods.harness.cache import MethodCache
from tests.benchmarks.methods.cases import CASES

LENGTHS = (53, 37)  # of the prompts
STEPS = (1, 3, 1, 1)  # tokens of the steps that follow
pytestmark = pytest.mark.parametrize("case", CASES)


@pytest.fixture(scope="module")
def prompts():
    generator = torch.Generator().manual_seed(1)
    after = torch.randint(256, (len(LENGTHS), sum(STEPS)), generator=generator)
    return [torch.randint(256, (length,), generator=generator) for length in LENGTHS], after


@pytest.fixture(scope="module")
def calibrated(model):
    """Each method once, with what it learns from the model."""
    rows = torch.randint(256, (2, 64), generator=torch.Generator().manual_seed(2))
    known = {}
    return lambda case: known.setdefault(case, CASES[case].calibrated(model, rows))


def run(model, cache, rows, mask, after):
    """Logits of every position of the prompts, and of the tokens after them, step by step."""
    position = mask.cumsum(-1) - 1
    logits, steps, start = [], after.split(STEPS, 1), 0
    for ids in (rows, *steps):
        if start:
            mask = torch.cat([mask, torch.ones_like(ids)], 1)
            position = mask.cumsum(-1)[:, -ids.shape[1] :] - 1
        logits.append(model(ids, attention_mask=mask, position_ids=position.clamp(min=0), past_key_values=cache).logits)
        start += ids.shape[1]
    return logits[0], torch.cat(logits[1:], 1)


@torch.inference_mode()
def test_a_ragged_batch_is_each_request_alone(case, model, layers, prompts, calibrated):
    rows, after = prompts
    width = max(LENGTHS)
    padded = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0)) for row in rows])
    mask = torch.stack([torch.arange(width) >= width - len(row) for row in rows]).long()
    together = MethodCache(calibrated(case), layers)
    at_prompt, decoded = run(model, together, padded, mask, after)
    for index, row in enumerate(rows):
        alone = MethodCache(calibrated(case), layers)
        own_prompt, own = run(model, alone, row[None], torch.ones(1, len(row), dtype=torch.long), after[index, None])
        torch.testing.assert_close(at_prompt[index, width - len(row) :], own_prompt[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(decoded[index], own[0], rtol=0, atol=1e-5)
        assert together.request_nbytes(index) == alone.nbytes() > 0
    assert together.nbytes() == sum(together.request_nbytes(index) for index in range(len(rows)))


@torch.inference_mode()
def test_a_prompt_attends_to_itself_uncompressed(case, model, dense_model, layers, prompts, calibrated):
    method, row = calibrated(case), prompts[0][0][None]
    if any(method.source_layer(layer.index) != layer.index for layer in layers):
        pytest.skip("a shared layer has no keys and values of its own")
    logits = model(row, past_key_values=MethodCache(method, layers)).logits
    torch.testing.assert_close(logits, dense_model(row).logits, rtol=0, atol=1e-9)


@torch.inference_mode()
def test_it_takes_fewer_bytes_than_dense(case, model, layers, calibrated):
    """At 192 tokens, where full-precision tails have lost their weight."""
    row = torch.randint(256, (1, 192), generator=torch.Generator().manual_seed(3))
    held = {}
    for name in ("dense", case):
        cache = MethodCache(calibrated(name), layers)
        model(row, past_key_values=cache)
        held[name] = cache.nbytes()
    assert held["dense"] == 2 * 192 * 3 * 2 * 16 * 4
    assert case == "dense" or held[case] < 0.8 * held["dense"]


@torch.inference_mode()
def test_generate_goes_on_across_steps(case, model, layers, prompts, calibrated):
    """A left-padded batch generates what each prompt alone does."""
    rows, _ = prompts
    width, options = max(LENGTHS), {"max_new_tokens": 6, "do_sample": False, "eos_token_id": [511], "pad_token_id": 0}
    padded = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0)) for row in rows])
    mask = torch.stack([torch.arange(width) >= width - len(row) for row in rows]).long()
    cache = MethodCache(calibrated(case), layers)
    together = model.generate(padded, attention_mask=mask, past_key_values=cache, **options)
    assert cache.get_seq_length() == width + 5
    assert model.config._attn_implementation == IMPLEMENTATION
    for index, row in enumerate(rows):
        alone = model.generate(row[None], past_key_values=MethodCache(calibrated(case), layers), **options)
        assert torch.equal(together[index, width:], alone[0, len(row) :])


@torch.inference_mode()
def test_reading_changes_nothing(case, model, layers, prompts, calibrated):
    cache = MethodCache(calibrated(case), layers)
    model(prompts[0][0][None], past_key_values=cache)
    before = cache.nbytes()
    for layer in cache.layers:
        for store in layer.stores:
            first, second = store.read(), store.read()
            assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
            assert first[0].shape == first[1].shape and first[0].shape[::2] == (2, 16)
    assert cache.nbytes() == before
