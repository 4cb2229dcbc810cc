import pytest
import torch
from transformers import AutoModelForCausalLM

from offline_compress.calibration.statistics import layer_statistics, second_moment
from offline_compress.model.access import LayerRunner, hf_config
from offline_compress.model.source import open_source
from tests.support.tiny_models import build_even, edit_config

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


def from_transformers(model_directory, tokens: torch.Tensor) -> list[torch.Tensor]:
    """The mean of x x^T of every k_proj input, by running the whole model of transformers."""
    model = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32)
    seen: dict[int, list[torch.Tensor]] = {}
    for index, layer in enumerate(model.model.layers):
        projection = getattr(layer.self_attn, "qkv_proj", None) or layer.self_attn.k_proj
        projection.register_forward_pre_hook(
            lambda _m, args, index=index: seen.setdefault(index, []).append(args[0].flatten(0, 1).double())
        )
    with torch.no_grad():
        for row in tokens:
            model(input_ids=row[None])
    inputs = [torch.cat(seen[index]) for index in range(len(seen))]
    return [x.T @ x / len(x) for x in inputs]


@pytest.mark.parametrize(
    ("family", "overrides", "edits"),
    [
        ("llama", {"tie_word_embeddings": True}, {}),
        ("llama", {"rope_parameters": LLAMA3 | {"rope_theta": 500000.0}}, {}),
        ("llama", {}, {"rope_parameters": None, "rope_scaling": LLAMA3, "rope_theta": 500000.0}),
        ("llama", {}, {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 1e4}),
        ("llama", {"rope_parameters": YARN | {"rope_theta": 10000.0}}, {}),
        ("mistral", {"sliding_window": 7}, {}),
        ("mistral", {"sliding_window": None}, {}),
        ("qwen2", {}, {}),
        ("qwen3", {}, {}),
        ("phi3", {"sliding_window": 7, "rms_norm_eps": 1e-3}, {}),
        ("phi3", {}, {"sliding_window": None, "rope_parameters": None, "rope_scaling": None, "rope_theta": 3e4}),
    ],
)
def test_layer_by_layer_equals_the_whole_model(tmp_path, monkeypatch, family, overrides, edits):
    monkeypatch.setattr("offline_compress.model.access.WIDENED_ROWS", 50)
    model = edit_config(build_even(tmp_path / "model", family, **overrides), **edits)
    tokens = torch.randint(0, 256, (3, 40), generator=torch.Generator().manual_seed(0))
    source = open_source(str(model))
    runner = LayerRunner(source, hf_config(source.config), torch.device("cpu"))
    for found, expected in zip(
        layer_statistics(runner, tokens, tmp_path), from_transformers(model, tokens), strict=True
    ):
        torch.testing.assert_close(found.second_moment, expected, rtol=1e-3, atol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_hook_goes_even_after_an_error():
    linear = torch.nn.Linear(4, 4)
    with pytest.raises(RuntimeError), second_moment(linear, 4, torch.device("cpu")):
        raise RuntimeError
    assert not linear._forward_pre_hooks


def test_sum_over_many_chunks():
    linear, x = torch.nn.Linear(4, 4), torch.randn(2, 700, 4)
    with torch.no_grad(), second_moment(linear, 4, torch.device("cpu")) as total:
        linear(x)
        linear(x)
    flat = x.flatten(0, 1).double()
    torch.testing.assert_close(total, 2 * flat.T @ flat)
