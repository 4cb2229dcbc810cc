"""Memory and disk that a compression will need, from shapes alone."""

from collections.abc import Sequence

from offline_compress.calibration.statistics import KEPT_TOKENS
from offline_compress.checkpoint.output import tensor_specs
from offline_compress.factors.decomposition import BLOCK_ROWS
from offline_compress.factors.fuse_output import FUSED_ROWS
from offline_compress.grouping import Grouping
from offline_compress.model.access import KEY, WIDENED_ROWS, projection
from offline_compress.model.source import CHUNK_BYTES
from offline_compress.plan import GREEDY_SAMPLES, SENSITIVITY_SAMPLES, Plan
from offline_compress.ranks.layer_errors import PROBED_SAMPLES
from offline_compress.ranks.layer_sharing import SHARING_SAMPLES, SHARING_TOKENS
from offline_compress.ranks.storage_grid import candidate_ranks
from palu_vllm.format.config import DTYPE_BYTES, PaluConfig
from palu_vllm.format.shape import rank_step

FLOAT32, FLOAT64 = 4, 8
# what torch and its linear algebra add to the interpreter when they are first used, measured
LIBRARY_BYTES = 48 << 20
# how much more than the mean a search is taken to give the projection that gets most; what it will give is not known
SEARCHED_SPREAD = 1.25


def disk_bytes(plan: Plan, palu: PaluConfig) -> int:
    """Bytes of the weights that will be written."""
    return sum(spec.num_bytes for spec in tensor_specs(plan, palu))


def activation_bytes(plan: Plan, samples: int) -> int:
    """The activations before and behind a layer, and those of the probes of a search; gone at the end."""
    samples *= min(2, plan.geometry.num_layers + 1)
    if plan.measures_sensitivity:
        samples += SENSITIVITY_SAMPLES * (1 + 2 * plan.geometry.num_layers)
    tokens = samples * plan.seqlen
    if plan.searches_greedily:  # when the others are gone
        tokens = max(tokens, GREEDY_SAMPLES * _probed_tokens(plan) * (plan.geometry.num_layers + 2))
    return tokens * plan.geometry.hidden_size * FLOAT32


def nested_factor_bytes(plan: Plan) -> int:
    """What ``lowered_model.py`` keeps of all projections."""
    if not plan.searches_greedily:
        return 0
    sides = (plan.key, plan.value)
    numbers = sum(side.num_groups * side.full_rank * (plan.geometry.hidden_size + side.full_rank) for side in sides)
    return FLOAT32 * numbers * plan.geometry.num_layers


def layer_memory_bytes(plan: Plan, palu: PaluConfig, samples: int) -> int:
    """The most that one layer needs beyond the interpreter: whichever of its steps holds most."""
    moment = FLOAT64 * plan.geometry.hidden_size**2 if samples else 0
    kept = min(samples, _kept(plan)) * FLOAT32 * _probed_tokens(plan) * plan.geometry.hidden_size
    running = _sample_work(plan) if samples else 0
    reading = _objective_bytes(plan) + _reading_work(plan) if plan.needs_probes else 0
    likely = _likely_ranks(plan, palu)
    decomposing = max(_decomposition_work(plan, side, rank) for side, rank in likely)
    refitting = max(_refit_work(plan, side, [rank]) for side, rank in likely) if plan.refits else 0
    comparing = _comparison_work(plan, samples) if plan.options.has_budget else 0
    conditions = _condition_work(plan) if plan.needs_conditions else 0
    steps = (running, reading, decomposing, refitting, comparing, conditions, 3 * CHUNK_BYTES)
    return LIBRARY_BYTES + moment + kept + max(steps)


def _likely_ranks(plan: Plan, palu: PaluConfig) -> list[tuple[Grouping, int]]:
    """Of K and of V, the one projection that gets most; a search gives some projections more than others."""
    most = [(plan.key, max(palu.rank_k)), (plan.value, max(palu.rank_v))]
    if plan.searches_greedily:  # begins with all of them
        return [(plan.key, plan.key.full_rank), (plan.value, plan.value.full_rank)]
    if plan.searches_ranks and not plan.options.has_budget:
        return [(side, min(side.full_rank, round(SEARCHED_SPREAD * rank))) for side, rank in most]
    return most


def _kept(plan: Plan) -> int:
    return max(plan.kept_samples, PROBED_SAMPLES) if plan.options.has_budget else plan.kept_samples


def _probed_tokens(plan: Plan) -> int:
    return min(plan.seqlen, KEPT_TOKENS)


def _sample_work(plan: Plan) -> int:
    """A sample and what a layer makes of it, in float32: whichever of its steps needs most at once."""
    hidden, inner = plan.geometry.hidden_size, plan.config.intermediate_size
    attention, gate, down = 9 * hidden, 3 * hidden + 3 * inner, 4 * hidden + inner
    widened = (FLOAT32 + _stored_bytes(plan)) * WIDENED_ROWS * inner
    return max(FLOAT32 * plan.seqlen * max(attention, gate), FLOAT32 * plan.seqlen * down + widened)


def _objective_bytes(plan: Plan) -> int:
    """``A`` of all groups, for K and for V (``objective.py``)."""
    sides = (plan.key, plan.value) if plan.needs_weights else ()
    return sum(FLOAT64 * side.num_groups * side.full_rank**2 for side in sides)


def _attention_bytes(plan: Plan) -> int:
    """Attention weights of one sample."""
    return FLOAT32 * plan.geometry.num_heads * _probed_tokens(plan) ** 2


def _heads_bytes(plan: Plan) -> int:
    """Queries, keys and values of one sample."""
    geometry = plan.geometry
    return FLOAT32 * _probed_tokens(plan) * geometry.head_dim * (geometry.num_heads + 2 * geometry.num_kv_heads)


def _reading_work(plan: Plan) -> int:
    """A sample's attention when it is computed, or while the next one's heads are projected (``layer_errors.py``)."""
    geometry, tokens = plan.geometry, _probed_tokens(plan)
    widest = (_stored_bytes(plan) + FLOAT32) * geometry.hidden_size * geometry.num_heads * geometry.head_dim
    computed = 2 * _attention_bytes(plan) + 6 * FLOAT32 * tokens**2 + _heads_bytes(plan)
    return max(computed, _attention_bytes(plan) + 3 * _heads_bytes(plan) + widest)


def _condition_work(plan: Plan) -> int:
    """A projection, the Gram matrix of all its heads and what LAPACK adds."""
    width = plan.geometry.num_kv_heads * plan.geometry.head_dim
    rows = FLOAT64 * min(BLOCK_ROWS, width) * plan.geometry.hidden_size
    return _dense_bytes(plan) + 3 * FLOAT64 * width**2 + 2 * rows


def _factor_bytes(plan: Plan, side: Grouping, rank: int) -> int:
    """Both factors of one group in float64."""
    return FLOAT64 * rank * (plan.geometry.hidden_size + side.full_rank)


def _dense_bytes(plan: Plan) -> int:
    """A projection as stored: K or V, or the output projection."""
    geometry = plan.geometry
    rows = max(geometry.num_kv_heads, geometry.num_heads) * geometry.head_dim
    return _stored_bytes(plan) * geometry.hidden_size * rows


def _decomposition_work(plan: Plan, side: Grouping, rank: int) -> int:
    """The dense projection, both factors, and either the matrices of the groups at work or what is written."""
    hidden, groups, full = plan.geometry.hidden_size, side.num_groups, side.full_rank
    # the matrix itself and twice its size for LAPACK; roots of A and products with them
    matrices = 6 if plan.needs_weights else 3
    # rows in float64, and what they are multiplied to
    rows = 2 * FLOAT64 * min(BLOCK_ROWS, full) * hidden
    at_work = plan.workers * max(matrices * FLOAT64 * full**2 + _factor_bytes(plan, side, rank), rows)
    written = 3 * DTYPE_BYTES[plan.dtype] * max(groups * rank * hidden, FUSED_ROWS * plan.geometry.num_heads * rank)
    resident = _dense_bytes(plan) + _objective_bytes(plan)
    return resident + groups * _factor_bytes(plan, side, rank) + max(at_work - _factor_bytes(plan, side, rank), written)


def _refit_work(plan: Plan, side: Grouping, ranks: Sequence[int]) -> int:
    """``up`` fitted for all ``ranks``, the last the widest: sums of every head, rows of one or its solution."""
    geometry, widest = plan.geometry, ranks[-1]
    heads, width, tokens = geometry.num_kv_heads, geometry.head_dim, _probed_tokens(plan)
    sums = FLOAT64 * heads * (widest**2 + 2 * widest * width)
    found = FLOAT64 * heads * width * sum(ranks)
    queries = geometry.num_heads // heads
    rows = (FLOAT32 + FLOAT64) * queries * tokens * (widest + width)
    rows += 2 * FLOAT32 * (widest + width) * geometry.hidden_size
    solving = found + 3 * FLOAT64 * widest**2 + FLOAT64 * heads * width * widest
    factors = _dense_bytes(plan) + side.num_groups * _factor_bytes(plan, side, widest)
    return _objective_bytes(plan) + factors + sums + max(_reading_work(plan) + rows, solving)


def _comparison_work(plan: Plan, samples: int) -> int:
    """Errors of all ranks: attention of the probed samples, and what one side needs beside it."""
    probes = min(samples, PROBED_SAMPLES) * (2 * _heads_bytes(plan) + _attention_bytes(plan))
    return probes + max(_side_comparison_work(plan, side) for side in (plan.key, plan.value))


def _side_comparison_work(plan: Plan, side: Grouping) -> int:
    """Factors of full rank, those fitted for every rank, and one candidate's attention."""
    tokens, full, groups = _probed_tokens(plan), side.full_rank, side.num_groups
    ranks = candidate_ranks(full, rank_step(full))
    refitting = _refit_work(plan, side, [*ranks[:-1], full]) if plan.refits else 0
    fitted = (FLOAT64 + FLOAT32) * groups * full * sum(ranks[:-1]) if plan.refits else 0
    wide = _dense_bytes(plan) + _objective_bytes(plan) + groups * (_factor_bytes(plan, side, full) * 3 // 2)
    candidate = 2 * _attention_bytes(plan) + 3 * FLOAT32 * tokens * groups * full
    return max(_decomposition_work(plan, side, full), refitting, wide + fitted + candidate)


def _stored_bytes(plan: Plan) -> int:
    """Bytes per element of the projections."""
    return plan.source.tensors[projection(0, KEY)].dtype.itemsize


def _parameters(plan: Plan) -> int:
    return sum(tensor.num_bytes // tensor.dtype.itemsize for tensor in plan.source.tensors.values())


def sharing_memory_bytes(plan: Plan) -> int:
    """The whole model in float32, keys and values of the samples in all layers, and activations of one layer."""
    geometry = plan.geometry
    cached = 2 * geometry.num_layers * geometry.num_kv_heads * geometry.head_dim
    per_token = cached + 12 * geometry.hidden_size + 3 * plan.config.intermediate_size
    return FLOAT32 * (_parameters(plan) + SHARING_SAMPLES * min(SHARING_TOKENS, plan.seqlen) * per_token)


def fisher_memory_bytes(plan: Plan) -> int:
    """The whole model in float32, squared gradients, one sample's activations and logits with their gradients."""
    geometry, config = plan.geometry, plan.config
    parameters = _parameters(plan)
    matrices = 2 * geometry.num_layers * geometry.num_kv_heads * geometry.head_dim * geometry.hidden_size
    per_token = geometry.num_layers * (12 * geometry.hidden_size + 5 * config.intermediate_size) + 4 * config.vocab_size
    return FLOAT32 * (parameters + 2 * matrices + plan.seqlen * per_token)
