"""Compressed checkpoints in transformers: ``AutoModelForCausalLM.from_pretrained(OUT)``, with latents in its cache.

``configuration`` says what transformers reads from ``config.json``, ``attention`` computes one layer, ``modeling``
puts it into transformers' own Llama, Mistral (Phi-3 too), Qwen2 and Qwen3. Importing this package imports none of
them; ``palu_vllm.huggingface.register`` tells transformers where to look.
"""

from typing import Any


def find(name: str) -> Any:
    """The configuration or model class called ``name``; imports no more than it needs. Raises AttributeError."""
    if name.startswith("Palu") and name.endswith("Config"):
        from palu_vllm.huggingface import configuration as module
    elif name.startswith("Palu"):
        from palu_vllm.huggingface import modeling as module
    else:
        raise AttributeError(name)
    return getattr(module, name)
