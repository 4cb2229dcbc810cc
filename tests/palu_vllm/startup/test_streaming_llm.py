"""Sinks and a window asked for at the start: what layers are told, and one sentence for what cannot be."""

import pytest
from vllm.engine.arg_utils import EngineArgs

from palu_vllm.startup.check import StartError
from palu_vllm.startup.served import served_config
from palu_vllm.startup.streaming_llm import StreamingLLM

SIZES = {"start_size": 4, "recent_size": 60}


def configured(model, knobs, **options):
    settings = {"palu": {"streaming_llm": knobs}}
    return EngineArgs(str(model), dtype="float32", additional_config=settings, **options).create_engine_config()


def test_knobs_have_their_published_names_and_default():
    served = StreamingLLM.asked(SIZES)
    assert served == StreamingLLM(start_size=4, recent_size=60, enable_pos_shift=True)
    assert served.window == 61, "the last 60, and the token that is computed"
    assert served.operands == {"num_sinks": 4, "shift_sinks": True}
    assert not StreamingLLM.asked(SIZES | {"enable_pos_shift": False}).operands["shift_sinks"]


def test_they_reach_the_served_configuration(palu):
    assert served_config(configured(palu(), SIZES)).streaming == StreamingLLM(**SIZES)


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
