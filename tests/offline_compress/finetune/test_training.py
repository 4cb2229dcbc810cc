"""The loop: every row in every pass, a falling loss, and the same again with the same seed."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from offline_compress import CompressionError
from offline_compress.finetune.training import Schedule, batches, train
from offline_compress.run.progress import ignore

SCHEDULE = Schedule(steps=12, batch_size=4, learning_rate=1e-2, seed=5)


@pytest.mark.parametrize(("rows", "size"), [(7, 3), (8, 4), (3, 5), (1, 2)])
def test_every_pass_has_every_row_once(rows, size):
    steps = 3 * rows
    chosen = list(batches(rows, Schedule(steps, size, 1e-3, 1)))
    assert [len(batch) for batch in chosen] == [size] * steps
    stream = torch.cat(chosen)
    for whole in stream[: len(stream) // rows * rows].view(-1, rows):
        assert sorted(whole.tolist()) == list(range(rows))


def test_the_seed_decides_the_order():
    one, same, other = (torch.cat(list(batches(50, Schedule(9, 5, 1e-3, seed)))) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.fixture
def model(dense):
    return AutoModelForCausalLM.from_pretrained(dense("llama"))


@pytest.fixture
def tokens():
    return torch.randint(0, 256, (4, 24), generator=torch.Generator().manual_seed(0))


def test_the_loss_falls_and_the_rest_stays_frozen(model, tokens):
    model.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    trained = [model.lm_head.weight.requires_grad_()]
    events = []
    losses = train(model, trained, tokens, SCHEDULE, events.append)
    assert len(losses) == 12 and losses[-1] < 0.8 * losses[0]
    assert {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])} == {
        "lm_head.weight"
    }
    assert [event["number"] for event in events] == list(range(12))
    assert all(event["of"] == 12 and event["tokens_per_second"] > 0 for event in events)
    assert not model.training


def test_the_first_loss_is_that_of_the_model(model, tokens):
    parameters = list(model.parameters())
    with torch.no_grad():
        expected = model(tokens, labels=tokens).loss.item()
    assert train(model, parameters, tokens, SCHEDULE._replace(steps=1), ignore) == [pytest.approx(expected, rel=1e-5)]


def test_the_learning_rate_ends_near_zero(model, tokens):
    """Half a cosine: the last of n steps has the share (1 - cos(pi / n)) / 2 of the first one's rate."""
    sizes, last = [], model.lm_head.weight.detach().clone()

    def watch(_event):
        nonlocal last
        sizes.append((model.lm_head.weight - last).abs().max().item())
        last = model.lm_head.weight.detach().clone()

    train(model, [model.lm_head.weight], tokens, SCHEDULE, watch)
    assert sizes[-1] < 0.05 * sizes[0]


def test_a_loss_that_is_not_finite_is_one_sentence(model, tokens):
    with pytest.raises(CompressionError, match="loss of step [23] is not finite; give a smaller --lr"):
        train(model, list(model.parameters()), tokens, SCHEDULE._replace(learning_rate=1e30), ignore)
