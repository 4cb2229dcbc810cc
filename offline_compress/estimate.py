"""Memory and disk that a compression will need, from shapes alone."""

from offline_compress.model_access import WIDENED_ROWS
from offline_compress.output import tensor_specs
from offline_compress.plan import Plan
from palu_vllm.config import PaluConfig

FLOAT32, FLOAT64 = 4, 8
# what allocator, thread pools and linear algebra libraries add: 1.37 measured at 7B shape (compressor_memory.json)
OVERHEAD = 1.4


def disk_bytes(plan: Plan, palu: PaluConfig) -> int:
    """Bytes of the weights that will be written."""
    return sum(spec.num_bytes for spec in tensor_specs(plan, palu))


def activation_bytes(plan: Plan, samples: int) -> int:
    """The file of activations between two layers; its pages can leave memory."""
    return samples * plan.seqlen * plan.geometry.hidden_size * FLOAT32


def layer_memory_bytes(plan: Plan, palu: PaluConfig, samples: int) -> int:
    """The most that one layer needs: running it on a sample, or decomposing it afterwards."""
    moment = FLOAT64 * plan.geometry.hidden_size**2 if samples else 0
    running = _layer_weights(plan) + _widened_rows(plan) + moment + _sample_work(plan) if samples else 0
    peak = max(running, 2 * moment + _decomposition_work(plan, palu))
    return int(OVERHEAD * peak) + activation_bytes(plan, samples)


def _layer_weights(plan: Plan) -> int:
    source = plan.source
    return sum(source.num_bytes(name) for name in source.files if name.startswith("model.layers.0."))


def _widened_rows(plan: Plan) -> int:
    """Rows of the widest matrix of a layer once more, in float32."""
    return FLOAT32 * WIDENED_ROWS * max(plan.config.intermediate_size, plan.geometry.hidden_size)


def _sample_work(plan: Plan) -> int:
    """Activations inside a layer for one sample: three of the feed-forward width, six of the hidden width."""
    return FLOAT32 * plan.seqlen * (3 * plan.config.intermediate_size + 6 * plan.geometry.hidden_size)


def _decomposition_work(plan: Plan, palu: PaluConfig) -> int:
    """Projections as stored, both factors in float64, one group's SVD, the fused output projection."""
    hidden, width = plan.geometry.hidden_size, plan.geometry.num_kv_heads * plan.geometry.head_dim
    group = FLOAT64 * plan.full_rank * (5 * hidden + 4 * plan.full_rank)
    output = FLOAT32 * hidden * plan.geometry.num_heads * max(*palu.rank_v, plan.geometry.head_dim)
    return group + output + FLOAT64 * 2 * hidden * width


def fisher_memory_bytes(plan: Plan) -> int:
    """The whole model in float32, squared gradients, one sample's activations and logits with their gradients."""
    geometry, config = plan.geometry, plan.config
    parameters = sum(
        plan.source.num_bytes(name) // plan.source.stored_dtype(name).itemsize for name in plan.source.files
    )
    matrices = 2 * geometry.num_layers * geometry.num_kv_heads * geometry.head_dim * geometry.hidden_size
    per_token = geometry.num_layers * (12 * geometry.hidden_size + 5 * config.intermediate_size) + 4 * config.vocab_size
    return int(OVERHEAD * FLOAT32 * (parameters + 2 * matrices + plan.seqlen * per_token))
