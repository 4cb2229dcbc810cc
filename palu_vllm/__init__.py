"""Serves language models whose KV cache holds low-rank latents (Palu, ICLR 2025) with vLLM.

Importing this package imports neither torch nor transformers nor vLLM.
"""

from palu_vllm.huggingface import register as transformers_hook


def register() -> None:
    """Entry point ``vllm.general_plugins``: makes vLLM know the palu models and the attention backend.

    vLLM calls it in each of its processes, possibly more than once. Says nothing about an unsupported vLLM:
    that is told where a palu model is used, so that other models are served as before.
    """
    from palu_vllm import plugin

    plugin.register_all()


def __getattr__(name: str) -> str:
    """``palu_vllm.__version__``, read when it is asked for: this module is imported at every interpreter start."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from palu_vllm.version import __version__

    return __version__


transformers_hook.install()
