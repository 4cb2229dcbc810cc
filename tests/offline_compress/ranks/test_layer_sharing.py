"""KVSharer's search, and checkpoints whose layers share: the map of the paper, the tensors of the mathematics."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from offline_compress import compress
from offline_compress.commands.compress import parse_options
from offline_compress.factors.head_order import grouped_order, permuted, similarity
from offline_compress.model.access import KEY, OUTPUT, QUERY, VALUE, projection
from offline_compress.model.source import open_source
from offline_compress.options import CompressOptions
from offline_compress.ranks.layer_sharing import search_sharing
from offline_compress.run.errors import CompressionError
from offline_compress.shared_layers import source_layers
from palu_vllm.format.checkpoint import SINGLE, attention_prefix, check_shapes, iterate_tensors, read_config
from tests.support.oracles.shared_layers import dense_of, searched_pairs, shared_logits
from tests.support.tiny_models import build_even

LAYERS = 4


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3"])
def model_directory(request, tmp_path_factory):
    return build_even(tmp_path_factory.mktemp(request.param) / "model", request.param, num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return build_even(tmp_path_factory.mktemp("llama") / "model", num_hidden_layers=LAYERS)


@pytest.mark.parametrize(("count", "threshold"), [(2, -1.0), (1, 0.75)])
def test_the_map_is_the_papers(model_directory, count, threshold):
    """At 0.75 Qwen2's most dissimilar pairs are refused."""
    model = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32)
    tokens = torch.randint(256, (3, 24), generator=torch.Generator().manual_seed(7))
    found = search_sharing(model, tokens, count, threshold)
    assert found.pairs == searched_pairs(model, tokens, count, threshold)
    assert threshold <= found.similarity < 1


@pytest.fixture(scope="module")
def of_family(model_directory):
    """Each family in another way."""
    ways = {
        "llama": {"rank_ratio": 1.0, "hadamard": True},
        "qwen2": {"rank_ratio": 0.5},
        "qwen3": {"rank_ratio": 0.5, "value_path": "factored", "hadamard": True},
    }
    return ways[json.loads((model_directory / "config.json").read_text())["model_type"]]


@torch.inference_mode()
def test_what_is_written_is_the_papers_model(model_directory, of_family, tmp_path):
    """KVSharer on keys and values of the ranks, biases and norms included; rotations cancel."""
    out, tokens = tmp_path / "out", torch.randint(256, (2, 40), generator=torch.Generator().manual_seed(3))
    compress(model_directory, out, objective="svd", search="uniform", share_map=((2, 0), (3, 0)), **of_family)
    found = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)(tokens).logits
    expected = shared_logits(dense_of(model_directory, out), (0, 1, 0, 0), tokens)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def test_heads_of_readers_are_in_the_order_of_their_source(llama, tmp_path):
    """The same tensors as of a model whose heads stood in that order."""
    options = {"objective": "svd", "search": "uniform", "group_size": 2, "share_map": ((3, 0),)}
    compress(llama, tmp_path / "reordered", reorder_heads=True, **options)
    sides = [open_source(str(llama)).tensor(projection(0, name)) for name in (KEY, VALUE)]
    order = grouped_order(sum(similarity(side, 4, None) for side in sides), 2)
    moved = shutil.copytree(llama, tmp_path / "moved")
    tensors = load_file(moved / SINGLE)
    for layer in (0, 3):
        for name in (QUERY, KEY, VALUE):
            tensors[projection(layer, name)] = permuted(tensors[projection(layer, name)], order)
        tensors[projection(layer, OUTPUT)] = permuted(tensors[projection(layer, OUTPUT)], order, dim=1)
    save_file(tensors, moved / SINGLE, metadata={"format": "pt"})
    compress(moved, tmp_path / "plain", **options)
    reordered, plain = (dict(iterate_tensors(tmp_path / name)) for name in ("reordered", "plain"))
    assert order != sorted(order)
    compared = [name for name in plain if name.startswith((attention_prefix(0), attention_prefix(3)))]
    assert all(torch.equal(reordered[name], plain[name]) for name in compared)
    readers = {name.removeprefix(attention_prefix(3)) for name in compared if name.startswith(attention_prefix(3))}
    assert readers == {"q_proj.weight", "o_proj.weight"}, "queries and outputs only"


def test_a_threshold_that_no_layers_meet(llama):
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    with pytest.raises(CompressionError, match="0 layers can share at threshold 1.0, not 1; give a lower"):
        search_sharing(model, torch.arange(20)[None], 1, 1.0)


@pytest.mark.parametrize("search", ["energy", pytest.param("fisher_uniform", marks=pytest.mark.slow)])
def test_rank_search_gives_shared_layers_those_of_their_source(llama, text, tmp_path, search):
    options = {"calib_data": text, "calib_samples": 4, "calib_seqlen": 48, "search": search, "objective": "whiten"}
    report = compress(llama, tmp_path / "out", rank_ratio=0.5, share_map=((2, 0), (3, 1)), **options)
    assert report["source_layers"] == [0, 1, 0, 1]
    for ranks in (report["rank_k"], report["rank_v"]):
        assert ranks[:2] == ranks[2:]
    assert report["rank_ratio_realised"] == 0.25
    assert report["bytes_per_token"] * 4 == report["dense_bytes_per_token"]


def test_a_searched_map_is_in_config_report_and_card(llama, text, tmp_path):
    out, told = tmp_path / "out", []
    report = compress(
        llama, out, share_layers=2, share_threshold=-1.0, rank_ratio=1.0, calib_data=text, calib_seqlen=48,
        on_event=told.append,
    )  # fmt: skip
    check_shapes(out)
    _, palu, geometry = read_config(out)
    assert palu.source_layers == report["source_layers"] and palu.num_shared == report["shared_layers"] == 2
    assert report["layer_sharing"]["pairs"] == [[at, to] for at, to in enumerate(palu.source_layers) if at != to]
    assert palu.bytes_per_token(geometry, "float32") * 2 == report["dense_bytes_per_token"]
    assert [event for event in told if event["event"] == "sharing" and " shares with " in event["text"]]
    assert "| layers without a cache |" in (out / "README.md").read_text()


@pytest.mark.slow
def test_a_budget_is_of_the_whole_model(llama, text, tmp_path):
    """Layers that share leave their bytes to the others."""
    report = compress(
        llama, tmp_path / "out", target_compression=6, share_map=((3, 1),), latent_bits=4, calib_data=text,
        calib_samples=2, calib_seqlen=48,
    )  # fmt: skip
    assert 0 < report["bytes_per_token"] <= report["dense_bytes_per_token"] / 6
    assert report["rank_k"][3] == report["rank_k"][1]
    assert all(len(choice["rank_k"]) == LAYERS for choice in report["budget"]["considered"])
    _, palu, _ = read_config(tmp_path / "out")
    assert palu.clip_k[3] == palu.clip_k[1] and palu.clip_v[3] == palu.clip_v[1]


@pytest.mark.parametrize("searched", [True, False])
def test_dry_run_knows_the_bytes(llama, text, tmp_path, searched):
    sharing = {"share_layers": 1, "calib_data": text} if searched else {"share_map": ((3, 0),)}
    options = {"objective": "svd", "search": "uniform", **sharing}
    told = compress(llama, tmp_path / "none", dry_run=True, **options)
    assert not (tmp_path / "none").exists()
    assert told["source_layers"] == (None if searched else [0, 1, 2, 0])
    assert told["shared_layers"] == 1 and (told["predicted_sharing_memory_bytes"] > 0) == searched
    assert told["bytes_per_token"] * 8 == told["dense_bytes_per_token"] * 3
    if not searched:
        written = compress(llama, tmp_path / "out", **options)
        assert written["bytes_per_token"] == told["bytes_per_token"]
        assert (tmp_path / "out" / "model.safetensors").stat().st_size == pytest.approx(told["disk_bytes"], rel=0.05)


@pytest.mark.parametrize(
    ("pairs", "sentence"),
    [
        (((0, 1),), "layer 0 cannot read layer 1 of 4; expected LAYER:SOURCE with an earlier one."),
        (((4, 1),), "layer 4 cannot read layer 1 of 4; expected"),
        (((2, 2),), "layer 2 cannot read layer 2 of 4; expected"),
        (((1, -1),), "layer 1 cannot read layer -1 of 4; expected"),
        (((2, 1), (2, 0)), "layer 2 is given two layers to read; give one of them."),
        (((3, 2), (2, 0)), "layer 3 cannot read layer 2, which reads layer 0."),
    ],
)
def test_maps_that_no_model_can_have(pairs, sentence):
    with pytest.raises(CompressionError) as error:
        source_layers(pairs, LAYERS)
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--share-layers", "-1"], "share layers is -1; expected at least 0."),
        (
            ["--share-layers", "1", "--share-map", "2:0"],
            "--share-layers searches what --share-map gives; give one of them.",
        ),
        (["--share-map", "2:0", "--share-threshold", "0.5"], "--share-threshold acts on --share-layers only; drop it."),
        (
            ["--share-layers", "1", "--share-threshold", "2"],
            "share threshold 2.0 is outside [-1, 1]; give a cosine, like 0.5.",
        ),
    ],
)
def test_options_that_contradict(arguments, sentence):
    with pytest.raises(CompressionError) as error:
        parse_options(["model", "out", *arguments])
    assert str(error.value).startswith(sentence)


def test_options_as_written():
    options = parse_options(["model", "out", "--share-map", "7:2,9:4"])
    assert options.share_map == ((7, 2), (9, 4))
    assert parse_options(["model", "out", "--share-layers", "3"]).least_similarity == 0.5
    with pytest.raises(SystemExit):
        parse_options(["model", "out", "--share-map", "7-2"])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"share_layers": 4}, "4 of 4 layers cannot share, because the first has none before it; give fewer"),
        ({"share_layers": 1, "search": "matryoshka"}, "--search matryoshka lowers ranks of every layer"),
        ({"share_layers": 1}, "--share-layers needs text to try layers on; add --calib-data, or give a --share-map."),
    ],
)
def test_what_the_model_or_the_data_do_not_allow(llama, tmp_path, options, sentence):
    with pytest.raises(CompressionError, match=sentence):
        compress(llama, tmp_path / "out", objective="svd", **{"search": "uniform"} | options)
    assert not (tmp_path / "out").exists()
    assert CompressOptions(model="m", out=tmp_path, **options).share_layers
