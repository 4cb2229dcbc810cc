"""Sinks and a window asked for at the start: what layers are told, and one sentence for what cannot be."""

import pytest
from transformers import PretrainedConfig
from vllm.engine.arg_utils import EngineArgs

from palu_vllm.startup.refusals import StartError
from palu_vllm.startup.streaming_llm import StreamingLLM

SIZES = {"start_size": 4, "recent_size": 60}


def configured(model, knobs, **options):
    settings = {"palu": {"streaming_llm": knobs}}
    return EngineArgs(str(model), dtype="float32", additional_config=settings, **options).create_engine_config()


def test_knobs_have_their_published_names_and_default():
    config = PretrainedConfig()
    assert StreamingLLM.served(config) is None
    StreamingLLM.asked(SIZES).write(config)
    served = StreamingLLM.served(PretrainedConfig.from_dict(config.to_dict()))
    assert served == StreamingLLM(start_size=4, recent_size=60, enable_pos_shift=True)
    assert served.window == 61, "the last 60, and the token that is computed"
    assert served.operands == {"num_sinks": 4, "shift_sinks": True}
    assert not StreamingLLM.asked(SIZES | {"enable_pos_shift": False}).operands["shift_sinks"]


def test_they_reach_the_configuration_of_the_model(palu):
    model = configured(palu(), SIZES).model_config
    assert StreamingLLM.served(model.hf_config) == StreamingLLM(**SIZES)


@pytest.mark.parametrize(
    ("knobs", "expected"),
    [
        ("4", "streaming_llm='4' for palu; expected start_size and recent_size"),
        ({"start_size": 4}, "expected start_size and recent_size"),
        (SIZES | {"sinks": 1}, "expected start_size and recent_size"),
        (SIZES | {"start_size": 0}, "start_size=0; expected a number of tokens from 1 on"),
        (SIZES | {"start_size": True}, "start_size=True"),
        (SIZES | {"recent_size": 1.5}, "recent_size=1.5"),
        (SIZES | {"enable_pos_shift": 1}, "enable_pos_shift=1; expected true or false"),
    ],
)
def test_what_makes_no_sense_is_refused(palu, knobs, expected):
    with pytest.raises(StartError) as refused:
        configured(palu(), knobs)
    assert expected in str(refused.value) and "\n" not in str(refused.value)


def test_a_model_with_a_window_of_its_own_is_refused(palu):
    with pytest.raises(StartError, match=r"this one has a sliding window of 24 tokens; leave streaming_llm out\.$"):
        configured(palu("mistral", sliding_window=24), SIZES)


def test_layers_that_share_a_cache_are_refused(palu):
    with pytest.raises(StartError, match=r"layers that share a cache, which this checkpoint has; leave it out\.$"):
        configured(palu("llama", source_layers=(0, 0)), SIZES)


@pytest.mark.parametrize(
    "options",
    [{"kv_offloading_size": 1.0}, {"kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}}],
)
def test_a_connector_is_refused(palu, options):
    with pytest.raises(StartError, match="does not know which blocks streaming_llm keeps; leave one of the two out"):
        configured(palu(), SIZES, **options)
