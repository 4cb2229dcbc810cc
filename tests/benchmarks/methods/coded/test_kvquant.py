import pytest
import torch

from benchmarks.methods.coded.kvquant import KVQuant, k_means
from benchmarks.methods.harness.calibration import keys_and_values
from benchmarks.methods.harness.interface import part
from benchmarks.methods.harness.measure import Judge
from tests.benchmarks.methods.stores import layer, tokens


@pytest.fixture(scope="module")
def rows():
    return torch.randint(256, (3, 64), generator=torch.Generator().manual_seed(8))


def test_k_means_levels_are_the_means_of_what_is_nearest_to_them():
    x = torch.randn(4000, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    even = torch.linspace(-1, 1, 8)
    levels = k_means(x, even, torch.ones_like(x), rounds=300)
    nearest = (x[:, None] - levels).abs().argmin(1)
    torch.testing.assert_close(levels, torch.stack([x[nearest == i].mean() for i in range(8)]), atol=2e-3, rtol=0)
    error, error_even = ((x[:, None] - each).abs().amin(1).square().mean() for each in (levels, even))
    assert error < error_even


def test_k_means_levels_go_where_numbers_weigh_most():
    x = torch.randn(4000, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    even, weights = torch.linspace(-1, 1, 8), (3 * x).exp()
    plain, weighted = (k_means(x, even, each, rounds=300) for each in (torch.ones_like(x), weights))
    error, error_plain = ((weights * (x[:, None] - each).abs().amin(1).square()).mean() for each in (weighted, plain))
    assert error < error_plain and weighted.median() > plain.median()
    nowhere = torch.where(x > 0, weights, 0)
    assert torch.equal(k_means(x, even, nowhere, rounds=1)[:3], even[:3])


def test_fisher_information_is_that_of_the_projections_outputs(dense_model, rows):
    """By hooks on the projections themselves: their outputs are keys before rotation, and values."""
    outputs = []
    attention = dense_model.model.layers[1].self_attn
    hooks = [
        p.register_forward_hook(lambda *call: outputs.append(call[2])) for p in (attention.k_proj, attention.v_proj)
    ]
    loss = dense_model(rows[:1], labels=rows[:1]).loss
    slopes = torch.autograd.grad(loss, outputs)
    for hook in hooks:
        hook.remove()
    found = KVQuant().studied(dense_model, rows)[1]
    for weights, slope in zip((found.key_weights, found.value_weights), slopes, strict=True):
        assert weights.shape == (3, 64, 32) and slope.abs().max() > 0
        torch.testing.assert_close(weights[0], slope[0].square().float(), rtol=1e-3, atol=1e-12)
    assert (KVQuant(fisher=False).studied(dense_model, rows)[1].key_weights == 1).all()


def test_more_bits_and_outliers_diverge_less(dense_model, rows):
    judge = Judge(dense_model, rows, 48)
    kl = {}
    for knobs in ((2, 1.0), (4, 1.0), (4, 0.9)):
        method = KVQuant(abits=knobs[0], sparsity_threshold=knobs[1]).calibrated(dense_model, rows)
        kl[knobs] = judge.score_method(dense_model, method, torch.float16)["kl"]
    assert kl[2, 1.0] > kl[4, 1.0] > kl[4, 0.9] > 0


def test_bytes_count_codes_ranges_outliers_indices_and_sinks(dense_model, rows):
    method = KVQuant(abits=4, sparsity_threshold=0.9, first_few_fp16=2).calibrated(dense_model, rows)
    store = method.store(layer())
    store.append(tokens(40))
    codes, outliers = 32 // 2, 2 * 2 * (1 + 2)  # per token: codes; two on each side, a byte of index and a float16
    assert store.nbytes() == 38 * (2 * (codes + outliers) + 2 * 2) + 2 * 2 * 2 * 16 * 2


def test_tokens_one_by_one_are_the_prompt_at_once(dense_model, rows):
    method = KVQuant(abits=3, first_few_fp16=5).calibrated(dense_model, rows)
    x, whole, growing = tokens(20), method.store(layer()), method.store(layer())
    whole.append(x)
    for start, stop in ((0, 3), (3, 9), (9, 10), (10, 20)):
        growing.append(part(x, slice(start, stop)))
    assert all(torch.equal(a, b) for a, b in zip(whole.read(), growing.read(), strict=True))
    assert torch.equal(whole.read()[0][:, :5], x.keys[:, :5].half().float())


def test_outliers_are_exact(dense_model, rows):
    method = KVQuant(abits=2, sparsity_threshold=0.9, first_few_fp16=0).calibrated(dense_model, rows)
    keys, values = (each[0].clone() for each in keys_and_values(dense_model, rows)[0])
    values[1, 7, 3] = 50.0
    store = method.store(layer(dtype=torch.float32))
    store.append(tokens(64)._replace(keys=keys, values=values))
    assert store.read()[1][1, 7, 3] == 50.0


def test_what_cannot_be_is_refused():
    for knobs in ({"abits": 5}, {"sparsity_threshold": 0.3}, {"first_few_fp16": -1}):
        with pytest.raises(ValueError, match="."):
            KVQuant(**knobs)
    with pytest.raises(ValueError, match="calibrated first"):
        KVQuant().store(layer())
