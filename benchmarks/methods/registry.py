"""All methods by name, and how one is written in a command: ``kivi:k_bits=4,v_bits=2``."""

import dataclasses
import typing

from benchmarks.methods.coded.decoquant import DecoQuant
from benchmarks.methods.coded.gear import GEAR
from benchmarks.methods.coded.kivi import KIVI
from benchmarks.methods.coded.kvquant import KVQuant
from benchmarks.methods.coded.zipcache import ZipCache
from benchmarks.methods.harness.dense import Dense
from benchmarks.methods.harness.interface import Method, expect
from benchmarks.methods.kept.h2o import H2O
from benchmarks.methods.kept.pyramidinfer import PyramidInfer
from benchmarks.methods.kept.pyramidkv import PyramidKV
from benchmarks.methods.kept.qpruningkv import QPruningKV
from benchmarks.methods.kept.rolling_h2o import RollingH2O
from benchmarks.methods.kept.rolling_streaming_llm import RollingStreamingLLM
from benchmarks.methods.kept.snapkv import SnapKV
from benchmarks.methods.kept.streaming_llm import StreamingLLM
from benchmarks.methods.projected.lorc import LoRC
from benchmarks.methods.projected.matryoshkakv import MatryoshkaKV
from benchmarks.methods.shared.kvsharer import KVSharer

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        Dense,
        KIVI,
        GEAR,
        StreamingLLM,
        RollingStreamingLLM,
        H2O,
        RollingH2O,
        SnapKV,
        PyramidKV,
        PyramidInfer,
        QPruningKV,
        KVQuant,
        ZipCache,
        DecoQuant,
        MatryoshkaKV,
        LoRC,
        KVSharer,
    )
}


def knobs_of(method: type[Method]) -> dict[str, dataclasses.Field]:
    """The knobs that a user sets; what a method has learnt from a model is none."""
    return {field.name: field for field in dataclasses.fields(method) if field.repr}


def described(method: Method) -> str:
    """As ``parse_method`` takes it, with the knobs that differ from the defaults."""
    knobs = knobs_of(type(method))
    set_ = [
        f"{name}={getattr(method, name)}" for name, field in knobs.items() if getattr(method, name) != field.default
    ]
    return f"{method.name}:{','.join(set_)}" if set_ else method.name


def parse_method(text: str) -> Method:
    """``NAME`` or ``NAME:KNOB=VALUE,...``. Raises ValueError for what is unknown or does not fit."""
    name, _, rest = text.partition(":")
    expect(name in METHODS, f"unknown method {name!r}; there are {', '.join(METHODS)}")
    knobs, values = knobs_of(METHODS[name]), {}
    types = typing.get_type_hints(METHODS[name])
    for assignment in filter(None, rest.split(",")):
        knob, _, value = assignment.partition("=")
        expect(knob in knobs, f"{name} has no knob {knob!r}; it has {', '.join(knobs) or 'none'}")
        values[knob] = _value(knob, value, types[knob])
    return METHODS[name](**values)


def _value(knob: str, text: str, wanted: type) -> typing.Any:
    kinds = typing.get_args(wanted) or (wanted,)
    if type(None) in kinds and text == "None":
        return None
    kind = kinds[0]
    if kind is bool:
        expect(text in ("True", "False"), f"{knob} is {text!r}, expected True or False")
        return text == "True"
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{knob} is {text!r}, expected {kind.__name__}") from None
