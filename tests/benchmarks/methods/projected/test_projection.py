"""Coordinates within a subspace, and LoRC, which keeps them; MatryoshkaKV has its own file."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.methods.harness.attention import layers_of
from benchmarks.methods.harness.calibration import keys_and_values
from benchmarks.methods.harness.rotary import rotate, unrotate
from benchmarks.methods.projected.lorc import LoRC, progressive_ranks
from benchmarks.methods.projected.matryoshkakv import principal
from tests.benchmarks.methods.conftest import SMALL
from tests.benchmarks.methods.stores import layer, rotation, tokens
from tests.support.tiny_models import build_dense


@pytest.fixture(scope="module")
def rows():
    return torch.randint(256, (3, 64), generator=torch.Generator().manual_seed(6))


@pytest.mark.parametrize("scaling", [1.0, 1.3])
def test_unrotating_undoes_rotation(scaling):
    x, positions = torch.randn(2, 9, 16), torch.arange(100, 109)
    scaled = layer()
    object.__setattr__(scaled, "rotation", lambda at: [scaling * table for table in rotation(at)])
    torch.testing.assert_close(unrotate(rotate(x, positions, scaled), positions, scaled), x, atol=1e-4, rtol=1e-4)


def test_principal_directions_lose_least():
    """Less than as many other orthonormal directions, and nothing when all are kept."""
    x = tokens(64).keys[None]
    directions = principal(x)
    other = torch.linalg.qr(torch.randn(2, 16, 16)).Q
    for rank in (4, 10, 16):
        lost, lost_other = ((x[0] - x[0] @ u[..., :rank] @ u[..., :rank].mT).norm() for u in (directions, other))
        assert lost < lost_other or rank == 16
    assert lost < 1e-3


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_lorc_caches_what_truncated_weights_would_make(tmp_path, rows, family):
    """The store gives back the keys and values of a model whose projections are the truncated ones."""
    directory = build_dense(tmp_path / family, family, **SMALL)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    method = LoRC(d_max=0.75, d_min=0.5).calibrated(model, rows)
    first = layers_of(model, torch.float32)[0]
    store = method.store(first)
    own_k, own_v = (part[0] for part in keys_and_values(model, rows[:1])[0])
    store.append(tokens(64)._replace(keys=own_k, values=own_v))
    attention, factors = model.model.layers[0].self_attn, method.factors[0]
    for linear, basis in ((attention.k_proj, factors.keys[0]), (attention.v_proj, factors.values[0])):
        linear.weight.data = basis @ basis.T @ linear.weight.data
    for found, true in zip(store.read(), keys_and_values(model, rows[:1])[0], strict=True):
        torch.testing.assert_close(found, true[0], atol=1e-4, rtol=1e-4)
    assert store.nbytes() == 64 * (factors.keys.shape[-1] + factors.values.shape[-1]) * 4


def test_ranks_fall_with_the_cumulative_condition_number():
    singular = [(torch.linspace(2**c, 1, 64), torch.linspace(2, 1, 64)) for c in (3, 1, 5, 2)]
    ranks = progressive_ranks(singular, 0.75, 16)
    assert ranks == sorted(ranks, reverse=True) and (ranks[0], ranks[-1]) == (48, 16)


def test_what_cannot_be_is_refused(tmp_path, rows):
    qwen3 = AutoModelForCausalLM.from_pretrained(build_dense(tmp_path / "q", "qwen3", **SMALL))
    with pytest.raises(ValueError, match="not normalised"):
        LoRC().calibrated(qwen3, rows)
    with pytest.raises(ValueError, match="calibrated first"):
        LoRC().store(layer())
    with pytest.raises(ValueError, match="d_min"):
        LoRC(d_min=0.9)
