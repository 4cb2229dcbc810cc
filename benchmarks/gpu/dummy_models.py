"""Models of 8B shape that are a configuration alone, served with random weights: dense, compressed, and with a codec.

Time per token does not depend on the numbers of weights; a GPU machine without a network needs nothing carried for it.
"""

import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.latency.codec_arm import FOUR_TIMES
from benchmarks.latency.cpu_arms import random_codec
from offline_compress.checkpoint.output import compressed_config
from palu_vllm.format.codec.file import Codec, save_codec
from palu_vllm.format.config import PaluConfig

ARMS = ("dense", "palu_16", "palu_4", "codec")
GROUP = 4  # KV heads
SIZES: dict[bool, dict[str, Any]] = {  # of Llama 3.1 8B, and of a rehearsal
    False: {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "max_position_embeddings": 131072},
    True: {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
           "num_key_value_heads": 4, "head_dim": 32, "vocab_size": 256, "max_position_embeddings": 512},
}  # fmt: skip
RANKS = {False: (128, 384), True: (16, 24)}


def dense_config(rehearse: bool) -> dict[str, Any]:
    """A Llama's ``config.json``, without the scaling of long contexts."""
    about = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "rms_norm_eps": 1e-5}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False, "dtype": "bfloat16"}
    return about | rope | ends | SIZES[rehearse]


def palu_config(rehearse: bool) -> PaluConfig:
    """The same ranks in every layer, so that one kernel of each kind serves all."""
    layers, (rank_k, rank_v) = SIZES[rehearse]["num_hidden_layers"], RANKS[rehearse]
    return PaluConfig(
        base_model="random", group_size_k=GROUP, group_size_v=GROUP, rank_k=[rank_k] * layers, rank_v=[rank_v] * layers,
        value_path="fused", objective="none", search="uniform", calibration="none", seed=0, tool_version="none",
    )  # fmt: skip


def write_model(folder: Path, arm: str, rehearse: bool) -> dict[str, Any]:
    """Writes what the engine of an arm loads, and returns the options that it is started with."""
    folder.mkdir(parents=True, exist_ok=True)
    config, additional = dense_config(rehearse), dict[str, Any]()
    if arm.startswith("palu"):
        config = compressed_config(config, "bfloat16", palu_config(rehearse))
    if arm == "palu_4":
        additional = {"latent_bits": 4}
    if arm == "codec":
        write_codec(folder, rehearse)
        additional = {"codec": str(folder), "codec_digest": "ignore"}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    options: dict[str, Any] = {"model": str(folder), "load_format": "dummy", "skip_tokenizer_init": True}
    options |= {"attention_backend": "palu"} if arm.startswith("palu") else {}
    return options | ({"additional_config": {"palu": additional}} if additional else {})


def write_codec(folder: Path, rehearse: bool) -> None:
    """Random, in a quarter of the bytes, the same in every layer."""
    sizes = SIZES[rehearse]
    heads, width = sizes["num_key_value_heads"], sizes["head_dim"]
    torch.manual_seed(0)
    layer = random_codec(heads, width, heads // GROUP, FOUR_TIMES[GROUP * width])
    save_codec(folder, Codec(dict.fromkeys(range(sizes["num_hidden_layers"]), layer), {"name": "random"}))
