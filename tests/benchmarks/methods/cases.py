"""Every method with knobs that are small enough for prompts of some 50 tokens and heads of 16 numbers."""

from benchmarks.methods.coded.decoquant import DecoQuant
from benchmarks.methods.coded.gear import GEAR
from benchmarks.methods.coded.kivi import KIVI
from benchmarks.methods.coded.kvquant import KVQuant
from benchmarks.methods.coded.zipcache import ZipCache
from benchmarks.methods.harness.dense import Dense
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

GEAR_KNOBS = {"group_size": 8, "left": 0.05, "streaming_gap": 8}

CASES = {
    "dense": Dense(),
    "kivi-2": KIVI(k_bits=2, v_bits=2, group_size=8, residual_length=16),
    "kivi-4": KIVI(k_bits=4, v_bits=4, group_size=16, residual_length=16),
    "gear": GEAR(compress_mode="GEAR", **GEAR_KNOBS),
    "gear-kcvt": GEAR(compress_mode="GEAR-KCVT", quantize_bit=2, streaming_gap=3),
    "gear-l": GEAR(compress_mode="GEARL", quantize_bit=2, **GEAR_KNOBS),
    "kcvt": GEAR(compress_mode="KCVT", streaming_gap=3),
    "streaming_llm": StreamingLLM(max_capacity_prompts=16),
    "h2o": H2O(max_capacity_prompts=16),
    "snapkv": SnapKV(max_capacity_prompts=16),
    "pyramidkv": PyramidKV(max_capacity_prompts=16),
    "qpruningkv-kivi": QPruningKV(max_capacity_prompts=24, group_size=8),
    "qpruningkv-kvquant": QPruningKV(method="H2O", max_capacity_prompts=24, group_size=8, quant_method="kvquant"),
    "qpruningkv-layerquant": QPruningKV(
        method="LayerQuant", quant_method="layerquant", max_capacity_prompts=10, group_size=8, quant_end_layers=1
    ),
    "matryoshkakv": MatryoshkaKV(total_rank=110, max_steps=3),
    "matryoshkakv-pca": MatryoshkaKV(key_truncate_index=10, value_truncate_index=8, max_steps=0),
    "lorc": LoRC(d_max=0.75, d_min=0.5),
    "kvsharer": KVSharer(threshold=-1.0),
    "kvquant": KVQuant(abits=3, sparsity_threshold=0.9, first_few_fp16=2),
    "zipcache": ZipCache(streaming_gap=4),
    "pyramidinfer": PyramidInfer(prefill_decay_ratio=0.1, min_context_length=8),
    "pyramidinfer-decoding": PyramidInfer(
        prefill_decay_ratio=0.1, min_context_length=8, recent_ratio=0.04, exceed_length_to_compress=2
    ),
    "streaming_llm_rolling": RollingStreamingLLM(recent_size=20),
    "h2o_rolling": RollingH2O(hh_size=12, recent_size=8),
    "decoquant": DecoQuant(),
}
