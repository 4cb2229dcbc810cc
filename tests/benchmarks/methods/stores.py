"""Tokens for a store, as a layer of the tiny model would make them."""

import torch

from benchmarks.methods.harness.interface import Layer, Tokens


def rotation(positions):
    angles = positions[..., None].float() * 10000.0 ** (-torch.arange(8) / 8)
    return torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)


def layer(index=0, dtype=torch.float16, num_layers=4):
    return Layer(
        index=index,
        num_layers=num_layers,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        dtype=dtype,
        rotation=rotation,
        scale=0.25,
    )


def tokens(count, seed=0, start=0):
    """Keys with channels of very different ranges, as in real models."""
    generator = torch.Generator().manual_seed(seed)
    keys, values, queries = (torch.randn(heads, count, 16, generator=generator) for heads in (2, 2, 4))
    keys = keys * torch.logspace(-1, 1, 16) + torch.linspace(-3, 3, 16)
    return Tokens(keys, values, queries, torch.arange(start, start + count).expand(2, -1))


def errors(method, x, **options):
    """Root mean square error of keys and values that a store of ``method`` gives back of one prompt."""
    store = method.store(layer(**options))
    store.append(x)
    return [(read - true).square().mean().sqrt().item() for read, true in zip(store.read(), x[:2], strict=True)]
