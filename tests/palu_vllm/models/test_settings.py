"""Settings of ``--additional-config``: what they change, and one sentence for what they cannot."""

import pytest
from vllm.engine.arg_utils import EngineArgs

from palu_vllm.config import PaluConfig, whole_latent
from palu_vllm.models.start_checks import StartError


def served(model, settings) -> PaluConfig:
    arguments = EngineArgs(str(model), dtype="float32", additional_config={"palu": settings})
    return PaluConfig.from_hf_config(arguments.create_engine_config().model_config.hf_config.to_dict())


def test_bits_of_both_and_of_one(palu):
    both = served(palu(), {"latent_bits": 4})
    assert (both.tiers_k, both.tiers_v) == (whole_latent(4), whole_latent(4))
    mixed = served(palu(), {"latent_bits": 4, "latent_bits_k": 8})
    assert (mixed.tiers_k, mixed.tiers_v) == (whole_latent(8), whole_latent(4))
    assert served(palu(), {}).tiers_v == whole_latent(16)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"bits": 4}, "palu settings {'bits'}; expected latent_bits"),
        ({"latent_bits": "4"}, "latent_bits='4' for palu; expected a number of bits"),
        ({"latent_bits": 5}, "have bits other than 16, 8, 4, 3, 2"),
        ("4", "palu settings {'4'}"),
    ],
)
def test_what_makes_no_sense_is_refused(palu, settings, expected):
    with pytest.raises(StartError) as refused:
        served(palu(), settings)
    assert expected in str(refused.value) and "\n" not in str(refused.value)
