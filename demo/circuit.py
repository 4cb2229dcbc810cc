"""Starts a Llama with an induction circuit, so that training need not find one by itself.

The circuit is that of Olsson et al., "In-context Learning and Induction Heads" (2022): heads of layer 0
attend one to four tokens back and note those tokens' embeddings; a head of layer 1 attends to the
position whose noted tokens match the latest ones, and copies its token, or to the begin-of-text token, which
says nothing, where two tokens in a row match nowhere. Training is free to change all
of it.

The residual stream is laid out as ``[constant | begin of text | token: 2 .. TOKEN | noted: 4 x NOTE]``.
"""

import torch
from transformers import LlamaForCausalLM

TOKEN = 128  # dimensions of the residual stream that hold the token's embedding at the start
NOTE = 32  # dimensions per noted earlier token
BACK = 4  # tokens noted
FAST = 8  # rotary pairs that tell positions apart
SHARPNESS = 8.0  # how much a positional head prefers its offset to the next token, roughly
MATCH = 8.0  # score of one matching token; three in a row score three times as much
SINK = 18.0  # score of the begin-of-text token
NOTED = 2.0  # size of a note, in sizes of an embedding
COPY = 12.0  # size of the copied token, in sizes of an embedding

NORMED_CONSTANT, NORMED_FLAG = 3.2, 15.0  # the constant and the begin-of-text flag as layer 1 sees them
QUIET = 0.03  # scale of what everything else writes at the start


def plant_induction(model: LlamaForCausalLM, begin: int, generator: torch.Generator) -> None:
    """Overwrites the embedding, the attention of layer 0 and KV head 0 of layer 1. Needs hidden 256, head_dim 64.

    ``begin`` is the id of the begin-of-text token.
    """
    config = model.config
    head_dim, per_kv = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    random = torch.randn(TOKEN - 2, NOTE, generator=generator)
    project = torch.linalg.qr(random).Q.T  # [NOTE, TOKEN - 2], orthonormal rows
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight *= QUIET
            layer.mlp.down_proj.weight *= QUIET
        embedding = model.model.embed_tokens.weight
        embedding[:, TOKEN:] *= 0.1
        size = embedding[:, 2:TOKEN].square().mean().sqrt().item()
        embedding[:, 0] = 4 * size
        embedding[:, 1] = 0
        embedding[begin, 1:TOKEN] = 0
        embedding[begin, 1] = 12 * size
        unit = size / _normed(1, config)  # turns what a norm lets through back into sizes of an embedding
        for back in range(BACK):
            _look_back(model.model.layers[0].self_attn, back, per_kv, head_dim, project, config, unit)
        _match(model.model.layers[1].self_attn, per_kv, head_dim, project, generator, unit)


def _frequencies(config) -> torch.Tensor:
    half = config.head_dim // 2
    return config.rope_parameters["rope_theta"] ** (-torch.arange(half) / half)


def _look_back(attention, back: int, per_kv: int, head_dim: int, project: torch.Tensor, config, unit: float) -> None:
    """KV head ``back`` attends ``back + 1`` tokens back and writes that token's projection into its note."""
    angle = _frequencies(config) * (back + 1)
    constant = _normed(4, config)
    strength = torch.zeros(head_dim // 2)
    strength[:FAST] = (SHARPNESS * head_dim**0.5) ** 0.5 / constant
    attention.k_proj.weight[back * head_dim : (back + 1) * head_dim] = 0
    turned = torch.cat([strength * angle.cos(), strength * angle.sin()])
    attention.k_proj.weight[back * head_dim : (back + 1) * head_dim, 0] = turned
    attention.v_proj.weight[back * head_dim : back * head_dim + NOTE, :] = 0
    attention.v_proj.weight[back * head_dim : back * head_dim + NOTE, 2:TOKEN] = project
    note = TOKEN + back * NOTE
    for head in range(back * per_kv, (back + 1) * per_kv):
        rows = slice(head * head_dim, (head + 1) * head_dim)
        attention.q_proj.weight[rows] = 0
        attention.q_proj.weight[head * head_dim : head * head_dim + head_dim // 2, 0] = strength
        attention.o_proj.weight[:, rows] = 0
        attention.o_proj.weight[note : note + NOTE, head * head_dim : head * head_dim + NOTE] = torch.eye(NOTE) * (
            NOTED * unit / per_kv
        )


def _normed(size: float, config) -> float:
    """A dimension after the input norm, for one of ``size`` sizes of an embedding before it."""
    return size / ((16 + TOKEN - 1) / config.hidden_size) ** 0.5


def _match(
    attention, per_kv: int, head_dim: int, project: torch.Tensor, generator: torch.Generator, unit: float
) -> None:
    """KV head 0 scores positions whose noted tokens are the latest tokens, on the slow rotary pairs only.

    The slowest pair is the sink: a constant in the query against a key that only the begin-of-text token has.
    """
    half, slow = head_dim // 2, head_dim // 4
    dims = torch.cat([torch.arange(half - slow, half - 1), torch.arange(head_dim - slow, head_dim - 1)])
    gain = (MATCH * head_dim**0.5 / NOTE) ** 0.5
    query = torch.zeros(head_dim, attention.q_proj.in_features)
    key = torch.zeros_like(query)
    for back in range(BACK - 1):
        mixer = gain * torch.linalg.qr(torch.randn(NOTE, NOTE, generator=generator)).Q[: len(dims)]
        key[dims, TOKEN + back * NOTE : TOKEN + (back + 1) * NOTE] += mixer
        if back == 0:
            query[dims, 2:TOKEN] += mixer @ project
        else:
            query[dims, TOKEN + (back - 1) * NOTE : TOKEN + back * NOTE] += mixer
    query[half - 1, 0] = (SINK * head_dim**0.5) ** 0.5 / NORMED_CONSTANT
    key[half - 1, 1] = (SINK * head_dim**0.5) ** 0.5 / NORMED_FLAG
    copy = torch.linalg.qr(torch.randn(TOKEN - 2, head_dim, generator=generator)).Q.T  # [head_dim, TOKEN - 2]
    attention.k_proj.weight[:head_dim] = key
    attention.v_proj.weight[:head_dim] = 0
    attention.v_proj.weight[:head_dim, 2:TOKEN] = copy
    for head in range(per_kv):
        rows = slice(head * head_dim, (head + 1) * head_dim)
        attention.q_proj.weight[rows] = query
        attention.o_proj.weight[:, rows] = 0
        attention.o_proj.weight[2:TOKEN, rows] = copy.T * (COPY * unit / per_kv)
