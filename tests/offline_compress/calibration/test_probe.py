"""The error of attention with other keys or values, against attention computed plainly in float64."""

import pytest
import torch

from offline_compress.calibration.probe import SKETCH, AttentionProbe, rotate, sketch

KV_HEADS, QUERIES_PER_KV, TOKENS, HEAD_DIM, HIDDEN = 2, 3, 11, 8, 24


def normal(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def rotary() -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.outer(torch.arange(TOKENS), 10.0 ** -torch.arange(HEAD_DIM // 2)).repeat(1, 2)
    return angles.cos(), angles.sin()


def make_probe(window: int = TOKENS) -> AttentionProbe:
    distance = torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)
    heads = KV_HEADS * QUERIES_PER_KV
    return AttentionProbe(
        queries=2 * normal(heads, TOKENS, HEAD_DIM),
        keys=2 * normal(KV_HEADS, TOKENS, HEAD_DIM, seed=1),
        values=normal(KV_HEADS, TOKENS, HEAD_DIM, seed=2),
        output=sketch(normal(HIDDEN, heads * HEAD_DIM, seed=3)),
        rotary=rotary(),
        visible=(distance >= 0) & (distance < window),
        energy=normal(TOKENS, seed=4).square() + 1,
    )


def attention(probe: AttentionProbe, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """``[tokens, hidden]`` in float64, head by head."""
    table = tuple(part.double() for part in probe.rotary)
    out = torch.zeros(TOKENS, len(probe.output), dtype=torch.float64)
    for head, columns in enumerate(probe.output.double().split(HEAD_DIM, dim=1)):
        q = rotate(probe.queries[head].double(), table)
        k = rotate(keys[head // QUERIES_PER_KV].double(), table)
        scores = (q @ k.T / HEAD_DIM**0.5).masked_fill(~probe.visible, -torch.inf)
        out += scores.softmax(-1) @ values[head // QUERIES_PER_KV].double() @ columns.T
    return out


@pytest.mark.parametrize("window", [TOKENS, 4])
def test_errors_are_those_of_attention(window):
    probe = make_probe(window)
    keys, values = probe.keys + 0.1 * normal(*probe.keys.shape, seed=5), probe.values + 0.1
    exact = attention(probe, probe.keys, probe.values)
    for found, other in (
        (probe.key_error(keys), attention(probe, keys, probe.values)),
        (probe.value_error(values), attention(probe, probe.keys, values)),
    ):
        expected = ((other - exact).square().sum(-1) / probe.energy).mean()
        assert found == pytest.approx(expected.item(), rel=1e-4)


def test_nothing_changed_is_no_error():
    probe = make_probe()
    assert probe.key_error(probe.keys) == probe.value_error(probe.values) == 0


def test_keys_may_be_rotated_already():
    probe = make_probe()
    keys = probe.keys.roll(1, 0)
    assert probe.rotated_key_error(rotate(keys, probe.rotary)) == probe.key_error(keys) > 0


def test_a_constant_added_to_all_keys_before_rotation_changes_attention_but_not_one_added_to_all_scores():
    probe = make_probe()
    shifted = rotate(probe.keys, probe.rotary) + normal(KV_HEADS, 1, HEAD_DIM)  # every score of a query moves alike
    assert probe.rotated_key_error(shifted) == pytest.approx(0, abs=1e-10)
    assert probe.key_error(probe.keys + normal(KV_HEADS, 1, HEAD_DIM)) > 1e-3


def test_a_sketch_keeps_squared_lengths_on_average():
    output, x = normal(700, 32), normal(200, 32, seed=1)
    shorter = sketch(output)
    assert shorter.shape == (SKETCH, 32)
    exact, found = ((x @ matrix.T).square().sum() for matrix in (output, shorter))
    assert found.item() == pytest.approx(exact.item(), rel=0.25)
    assert torch.equal(shorter, sketch(output))
