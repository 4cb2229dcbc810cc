"""Settings of ``--additional-config``: what they change, and one sentence for what they cannot."""

import pytest
from vllm.engine.arg_utils import EngineArgs

from palu_vllm.format.config import PaluConfig, whole_latent
from palu_vllm.loading.leading import STORED
from palu_vllm.startup.refusals import StartError
from palu_vllm.startup.settings import apply_settings
from tests.support.palu_checkpoints import with_tiers


def served(model, settings) -> PaluConfig:
    arguments = EngineArgs(str(model), dtype="float32", additional_config={"palu": settings})
    return PaluConfig.from_hf_config(arguments.create_engine_config().model_config.hf_config.to_dict())


def test_bits_of_both_and_of_one(palu):
    both = served(palu(), {"latent_bits": 4})
    assert (both.tiers_k, both.tiers_v) == (whole_latent(4), whole_latent(4))
    mixed = served(palu(), {"latent_bits": 4, "latent_bits_k": 8})
    assert (mixed.tiers_k, mixed.tiers_v) == (whole_latent(8), whole_latent(4))
    assert served(palu(), {}).tiers_v == whole_latent(16)


def test_clip_ratios_were_searched_for_other_bits(palu, tmp_path):
    fields = {"clip_k": [0.9, 0.8], "clip_v": [0.7, 0.6], "latent_group_size": 16, "latent_symmetric": True}
    model = with_tiers(palu(), tmp_path / "clipped", [(1.0, 4)], [(1.0, 4)], **fields)
    assert served(model, {"latent_bits": 4}).clip_k == fields["clip_k"]
    other = served(model, {"latent_bits_k": 3})
    assert (other.clip_k, other.clip_v) == (None, fields["clip_v"])
    assert (other.latent_group_size, other.latent_symmetric) == (16, True)
    both = served(model, {"latent_bits": 8})
    assert (both.clip_k, both.clip_v) == (None, None)


def test_fewer_ranks_are_written_where_bits_are(palu, tmp_path):
    """Clip ratios were searched for other latents; asked again, nothing changes further."""
    fields = {"clip_k": [0.9, 0.8], "clip_v": [0.7, 0.6]}
    model = with_tiers(palu("llama", 48, 48), tmp_path / "clipped", [(1.0, 4)], [(1.0, 4)], **fields)
    fewer = served(model, {"rank_ratio": 0.5})
    assert (fewer.rank_k, fewer.rank_v, fewer.clip_k, fewer.clip_v) == ([32, 32], [32, 32], None, None)
    assert served(model, {"rank_ratio": 0.75}) == served(model, {}), "its own ratio"
    both = served(model, {"rank_ratio": 0.5, "latent_bits": 16})
    assert (both.rank_k, both.tiers_k) == ([32, 32], whole_latent(16))
    config = EngineArgs(
        str(model), dtype="float32", additional_config={"palu": {"rank_ratio": 0.5}}
    ).create_engine_config()
    before = config.model_config.hf_config.to_dict()
    apply_settings(config)
    assert config.model_config.hf_config.to_dict() == before


def test_latents_are_rotated_where_bits_and_ranks_are_written(palu, tmp_path):
    fields = {"clip_k": [0.9, 0.8], "clip_v": [0.7, 0.6]}
    model = with_tiers(palu("llama", 48, 48), tmp_path / "clipped", [(1.0, 4)], [(1.0, 4)], **fields)
    found = served(model, {"hadamard": True})
    assert (found.hadamard, found.clip_k, found.rank_k) == (True, None, [48, 48])
    found = served(model, {"hadamard": True, "rank_ratio": 0.5, "latent_bits": 3})
    assert (found.hadamard, found.rank_v, found.tiers_v) == (True, [32, 32], whole_latent(3))
    arguments = EngineArgs(
        str(model), dtype="float32", additional_config={"palu": {"hadamard": True, "rank_ratio": 0.5}}
    )
    config = arguments.create_engine_config()
    before = config.model_config.hf_config.to_dict()
    assert before[STORED] == {"rank_k": [48, 48], "rank_v": [48, 48], "hadamard": False}
    apply_settings(config)
    assert config.model_config.hf_config.to_dict() == before


def test_latents_that_are_rotated_already_stay(palu, tmp_path):
    model = with_tiers(palu(), tmp_path / "rotated", [(1.0, 4)], [(1.0, 4)], hadamard=True, clip_k=[0.9, 0.8])
    assert served(model, {"hadamard": True}) == served(model, {})


def test_latents_that_layers_share_cannot_be_rotated(palu):
    with pytest.raises(StartError, match=r"hadamard is not proven for layers that share a cache.*; leave it out\.$"):
        served(palu("llama", source_layers=(0, 0)), {"hadamard": True, "latent_bits": 4})


@pytest.mark.parametrize(("rank_v", "value_path"), [(48, "fused"), (64, "factored")])
def test_a_quantized_output_projection_cannot_be_rotated(palu, rank_v, value_path):
    config = EngineArgs(str(palu("llama", 48, rank_v, value_path=value_path)), dtype="float32").create_engine_config()
    config.model_config.hf_config.quantization_config = {"quant_method": "compressed-tensors"}
    config.additional_config = {"palu": {"hadamard": True, "latent_bits": 4}}
    with pytest.raises(ValueError, match="hadamard cannot rotate a quantized o_proj"):
        apply_settings(config)


def test_a_quantized_output_projection_with_v_up_inside_cannot_be_cut(palu):
    arguments = EngineArgs(str(palu("llama", 48, 48)), dtype="float32")
    config = arguments.create_engine_config()
    config.model_config.hf_config.quantization_config = {"quant_method": "compressed-tensors"}
    config.additional_config = {"palu": {"rank_ratio": 0.5}}
    with pytest.raises(ValueError, match="cannot cut a quantized o_proj that has v_up multiplied into it"):
        apply_settings(config)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"bits": 4}, "palu settings {'bits'}; expected latent_bits"),
        ({"latent_bits": "4"}, "latent_bits='4' for palu; expected a number of bits"),
        ({"latent_bits": 5}, "have bits other than 16, 8, 4, 3, 2"),
        ("4", "palu settings {'4'}"),
        ({"hadamard": False, "latent_bits": 4}, "hadamard=False for palu; expected true"),
        ({"hadamard": True}, "these have 16; give latent_bits too"),
        ({"rank_ratio": "0.5"}, "rank_ratio='0.5' for palu; expected a share above 0, at most 1"),
        ({"rank_ratio": True}, "rank_ratio=True for palu"),
        ({"rank_ratio": 0}, "rank_ratio=0 for palu"),
        ({"rank_ratio": float("nan")}, "rank_ratio=nan for palu"),
        ({"rank_ratio": 0.9}, "rank_ratio 0.9 is above 0.5"),
        ({"rank_ratio": 0.1}, "rank_ratio 0.1 is below 0.25"),
    ],
)
def test_what_makes_no_sense_is_refused(palu, settings, expected):
    with pytest.raises(StartError) as refused:
        served(palu(), settings)
    assert expected in str(refused.value) and "\n" not in str(refused.value)
