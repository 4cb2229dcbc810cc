import pytest
import torch

from offline_compress.calibration.fisher import fisher_information, group_importance


def toy(scale: float = 1.0) -> tuple[torch.nn.Parameter, torch.Tensor, torch.Tensor]:
    """A bigram model ``logits = embedding @ weight.T`` with a single weight, and two samples."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(6, 4))
    return weight, scale * torch.randn(6, 4), torch.randint(0, 6, (2, 9))


def test_root_of_the_mean_of_squared_gradients_per_sample():
    weight, embedding, samples = toy()
    seen = []
    found = fisher_information(lambda row: embedding[row] @ weight.T, [weight], samples, seen.append)
    squares = []
    for row in samples:
        probabilities = (embedding[row[:-1]] @ weight.T).softmax(-1)
        residual = probabilities - torch.nn.functional.one_hot(row[1:], 6)
        squares.append((residual.T @ embedding[row[:-1]] / 8).square())
    torch.testing.assert_close(found[0], torch.stack(squares).mean(0).sqrt())
    assert seen == [0, 1]


def test_importance_is_the_mean_over_the_rows_of_a_group():
    assert group_importance(torch.tensor([[1.0, 3.0], [2.0, 2.0], [0.0, 8.0], [4.0, 4.0]]), 2) == [2.0, 4.0]


def test_a_gradient_that_is_not_finite_is_an_error():
    weight, embedding, samples = toy(scale=float("inf"))
    with pytest.raises(ValueError, match="not finite"):
        fisher_information(lambda row: embedding[row] @ weight.T, [weight], samples, lambda _: None)
