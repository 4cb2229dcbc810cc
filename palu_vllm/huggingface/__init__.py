"""Compressed checkpoints in transformers: ``AutoModelForCausalLM.from_pretrained(OUT)``, with latents in its cache.

``configuration`` says what transformers reads from ``config.json``, ``attention`` computes one layer, ``modeling``
puts it into transformers' own models. Importing this package imports none of them, nor anything else;
``palu_vllm.huggingface.register`` tells transformers where to look.
"""


def __getattr__(name: str) -> type:
    """``PaluCache``, imported when it is asked for."""
    if name != "PaluCache":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from palu_vllm.huggingface.cache import PaluCache

    return PaluCache


def find(name: str) -> type:
    """The configuration or model class called ``name``; imports no more than it needs. Raises AttributeError."""
    if not name.startswith("Palu"):
        raise AttributeError(name)
    if name.endswith("Config"):
        from palu_vllm.huggingface import configuration

        return getattr(configuration, name)
    from palu_vllm.huggingface import modeling

    return getattr(modeling, name)
