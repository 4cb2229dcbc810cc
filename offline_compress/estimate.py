"""Memory and disk that a compression will need, from shapes alone."""

from offline_compress.fuse_output import FUSED_ROWS
from offline_compress.grouping import Grouping
from offline_compress.layer_errors import PROBED_SAMPLES
from offline_compress.model_access import KEY, WIDENED_ROWS, projection
from offline_compress.output import tensor_specs
from offline_compress.plan import SENSITIVITY_SAMPLES, Plan
from offline_compress.source import CHUNK_BYTES
from offline_compress.statistics import KEPT_TOKENS
from palu_vllm.config import DTYPE_BYTES, PaluConfig

FLOAT32, FLOAT64 = 4, 8
# what torch and its linear algebra add to the interpreter when they are first used, measured
LIBRARY_BYTES = 48 << 20


def disk_bytes(plan: Plan, palu: PaluConfig) -> int:
    """Bytes of the weights that will be written."""
    return sum(spec.num_bytes for spec in tensor_specs(plan, palu))


def activation_bytes(plan: Plan, samples: int) -> int:
    """The file of activations between two layers, and that of the probes of a search; gone at the end."""
    if plan.measures_sensitivity:
        samples += SENSITIVITY_SAMPLES * (1 + 2 * plan.geometry.num_layers)
    return samples * plan.seqlen * plan.geometry.hidden_size * FLOAT32


def layer_memory_bytes(plan: Plan, palu: PaluConfig, samples: int) -> int:
    """The most that one layer needs beyond the interpreter: running it on a sample, or decomposing it afterwards."""
    moment = FLOAT64 * plan.geometry.hidden_size**2 if samples else 0
    running = _sample_work(plan) if samples else 0
    sides = ((plan.key, palu.rank_k), (plan.value, palu.rank_v))
    decomposing = max(_decomposition_work(plan, side, max(ranks)) for side, ranks in sides)
    probing = _probe_work(plan) if plan.options.has_budget else 0
    reading = _reading_work(plan) if plan.needs_probes else 0
    kept = plan.kept_samples * FLOAT32 * min(plan.seqlen, KEPT_TOKENS) * plan.geometry.hidden_size
    return LIBRARY_BYTES + moment + kept + max(running, decomposing, probing, reading, 3 * CHUNK_BYTES)


def _reading_work(plan: Plan) -> int:
    """The attention of one kept sample, what a head reads, and the output projection (``attention_weights.py``)."""
    geometry, tokens = plan.geometry, min(plan.seqlen, KEPT_TOKENS)
    heads = 2 * FLOAT32 * tokens * geometry.head_dim * (geometry.num_heads + 2 * geometry.num_kv_heads)
    output = _stored_bytes(plan) * geometry.hidden_size * geometry.num_heads * geometry.head_dim
    return 2 * FLOAT32 * geometry.num_heads * tokens**2 + 6 * FLOAT32 * tokens**2 + heads + output


def _sample_work(plan: Plan) -> int:
    """A sample and what a layer makes of it, in float32: whichever of its steps needs most at once."""
    hidden, inner = plan.geometry.hidden_size, plan.config.intermediate_size
    attention, gate, down = 9 * hidden, 3 * hidden + 3 * inner, 4 * hidden + inner
    widened = (FLOAT32 + _stored_bytes(plan)) * WIDENED_ROWS * inner
    return max(FLOAT32 * plan.seqlen * max(attention, gate), FLOAT32 * plan.seqlen * down + widened)


def _decomposition_work(plan: Plan, side: Grouping, rank: int) -> int:
    """A projection as stored, both factors in float64, and either the eigenvectors of a group or writing the result."""
    hidden, full, groups = plan.geometry.hidden_size, side.full_rank, side.num_groups
    group_factors = FLOAT64 * rank * (hidden + full)
    # the matrix itself and twice its size for LAPACK
    eigenvectors = 3 * FLOAT64 * full**2
    if plan.needs_weights:  # those of all groups for K and V, their roots and products
        weights = sum(one.num_groups * one.full_rank**2 for one in (plan.key, plan.value))
        eigenvectors += FLOAT64 * (weights + 5 * full**2)
    written = 3 * DTYPE_BYTES[plan.dtype] * max(groups * rank * hidden, FUSED_ROWS * plan.geometry.num_heads * rank)
    dense = _stored_bytes(plan) * hidden * max(groups * full, plan.geometry.num_heads * plan.geometry.head_dim)
    return dense + max((groups - 1) * group_factors + eigenvectors, groups * group_factors + written)


def _probe_work(plan: Plan) -> int:
    """Factors of full rank, the attention of the kept samples, and one candidate's beside it (``layer_errors.py``)."""
    geometry, tokens = plan.geometry, min(plan.seqlen, KEPT_TOKENS)
    weights = FLOAT32 * geometry.num_heads * tokens**2
    heads = 2 * FLOAT32 * tokens * geometry.head_dim * (geometry.num_heads + 2 * geometry.num_kv_heads)
    samples = PROBED_SAMPLES * (weights + heads + FLOAT32 * tokens * geometry.hidden_size)
    width, widest = geometry.num_kv_heads * geometry.head_dim, max(plan.full_ranks)
    full_rank = (FLOAT64 + FLOAT32) * width * (geometry.hidden_size + widest)
    candidate = 2 * weights + 3 * FLOAT32 * tokens * width
    decomposing = max(_decomposition_work(plan, side, side.full_rank) for side in (plan.key, plan.value))
    return samples + max(decomposing, full_rank + candidate)


def _stored_bytes(plan: Plan) -> int:
    """Bytes per element of the projections."""
    return plan.source.tensors[projection(0, KEY)].dtype.itemsize


def fisher_memory_bytes(plan: Plan) -> int:
    """The whole model in float32, squared gradients, one sample's activations and logits with their gradients."""
    geometry, config = plan.geometry, plan.config
    parameters = sum(tensor.num_bytes // tensor.dtype.itemsize for tensor in plan.source.tensors.values())
    matrices = 2 * geometry.num_layers * geometry.num_kv_heads * geometry.head_dim * geometry.hidden_size
    per_token = geometry.num_layers * (12 * geometry.hidden_size + 5 * config.intermediate_size) + 4 * config.vocab_size
    return FLOAT32 * (parameters + 2 * matrices + plan.seqlen * per_token)
