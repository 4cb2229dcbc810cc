"""Whether a step of decoding is captured as a CUDA graph: where a server asks, by ``{"palu": {"cuda_graphs": true}}``.

Tests show on a CPU what a captured step needs, but no graph has been captured: the GPU tests of it have never run. Once
they have passed, asking is no longer needed. Until then attention runs between the graphs of the rest, which costs the
host's time for its launches and cannot be wrong.
"""

from vllm.config import VllmConfig
from vllm.v1.attention.backend import AttentionCGSupport

from palu_vllm.attention_backend.settings import palu_settings

CUDA_GRAPHS = "cuda_graphs"


def decoding_support(vllm_config: VllmConfig) -> AttentionCGSupport:
    """Of this model: batches of a token and its drafts where every layer takes them, else batches of single tokens.

    Layers are those that vLLM knows by name, once weights are loaded.
    """
    if not palu_settings(vllm_config).get(CUDA_GRAPHS):
        return AttentionCGSupport.NEVER
    speculation = vllm_config.speculative_config
    drafts = speculation.num_speculative_tokens if speculation else 0
    layers = vllm_config.compilation_config.static_forward_context.values()
    found = (getattr(getattr(layer, "impl", None), "attention", None) for layer in layers)
    attentions = [attention for attention in found if attention is not None]
    for support, queries in (
        (AttentionCGSupport.UNIFORM_BATCH, 1 + drafts),
        (AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE, 1),
    ):
        if all(attention.captures(queries) for attention in attentions):
            return support
    return AttentionCGSupport.NEVER
