"""Settings of ``--additional-config``: what they change, and one sentence for what they cannot."""

import pickle

import pytest
from vllm.engine.arg_utils import EngineArgs

from palu_vllm.format.config import PaluConfig, whole_latent
from palu_vllm.startup.check import StartError
from palu_vllm.startup.served import served_config
from tests.support.plain_svd import with_tiers


def configured(model, settings):
    return EngineArgs(str(model), dtype="float32", additional_config={"palu": settings}).create_engine_config()


def served(model, settings) -> PaluConfig:
    return served_config(configured(model, settings)).palu


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


def test_the_configuration_is_parsed_once_and_never_written_to(palu):
    """Also where it went to another process, as it does from a server to its engine and workers."""
    plain, config = configured(palu("llama", 48, 48), {}), configured(palu("llama", 48, 48), {"rank_ratio": 0.5})
    found = served_config(config)
    assert found is served_config(config) is served_config(pickle.loads(pickle.dumps(config)))
    assert found.is_cut_at_load and found.files == served_config(plain).palu
    assert config.model_config.hf_config.to_dict() == plain.model_config.hf_config.to_dict()


def test_latents_are_mixed_where_bits_and_ranks_are_written(palu, tmp_path):
    fields = {"clip_k": [0.9, 0.8], "clip_v": [0.7, 0.6]}
    model = with_tiers(palu("llama", 48, 48), tmp_path / "clipped", [(1.0, 4)], [(1.0, 4)], **fields)
    found = served(model, {"hadamard": True})
    assert (found.hadamard, found.clip_k, found.rank_k) == (True, None, [48, 48])
    found = served(model, {"hadamard": True, "rank_ratio": 0.5, "latent_bits": 3})
    assert (found.hadamard, found.rank_v, found.tiers_v) == (True, [32, 32], whole_latent(3))
    whole = served_config(configured(model, {"hadamard": True, "rank_ratio": 0.5}))
    assert (whole.files.rank_k, whole.files.hadamard, whole.is_mixed_at_load) == ([48, 48], False, True)


def test_latents_that_are_mixed_already_stay(palu, tmp_path):
    model = with_tiers(palu(), tmp_path / "mixed", [(1.0, 4)], [(1.0, 4)], hadamard=True, clip_k=[0.9, 0.8])
    assert served(model, {"hadamard": True}) == served(model, {})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"bits": 4}, "palu settings {'bits'}; expected latent_bits"),
        ({"latent_bits": "4"}, "latent_bits='4' for palu; expected a number of bits"),
        ({"latent_bits": 5}, "have bits other than 16, 8, 4, 3, 2"),
        ("4", "palu settings {'4'}"),
        ({"hadamard": False, "latent_bits": 4}, "hadamard=False for palu; expected true"),
        ({"hadamard": True}, "these have 16; give latent_bits too"),
        ({"rank_ratio": "0.5"}, "rank_ratio='0.5' for palu; expected a fraction above 0, at most 1"),
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
