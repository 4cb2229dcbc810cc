"""Tensors get the dtype of their parameters before vLLM sees them, and the numbers that copying would give."""

import torch

from palu_vllm.loading.rounded import rounded

FLOATS = torch.tensor([1.0, 1.00390625, -3.14159265, 1e-30, 6e4])


def test_the_numbers_are_those_of_a_copy():
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        parameter = torch.zeros(5, dtype=dtype)
        ((name, found),) = rounded([("scale", FLOATS)], {"scale": parameter})
        assert name == "scale" and found.dtype == dtype and torch.equal(found, parameter.copy_(FLOATS))


def test_what_has_no_parameter_of_its_name_stays():
    ((_, found),) = rounded([("gate_proj.weight", FLOATS)], {"gate_up_proj.weight": FLOATS.bfloat16()})
    assert found is FLOATS


def test_integers_stay():
    packed = torch.tensor([7, -8], dtype=torch.int32)
    for parameter in (packed, FLOATS.bfloat16()):
        ((_, found),) = rounded([("weight", packed)], {"weight": parameter})
        assert found is packed
    ((_, found),) = rounded([("weight", FLOATS)], {"weight": packed})
    assert found is FLOATS
