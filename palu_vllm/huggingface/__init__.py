"""Compressed checkpoints in transformers: ``AutoModelForCausalLM.from_pretrained(OUT)``, with latents in its cache.

``configuration`` says what transformers reads from ``config.json``, ``attention`` computes one layer, ``modeling``
puts it into transformers' own Llama, Mistral and Qwen2. Importing this package imports none of them.
"""


def register_auto_classes() -> None:
    """Makes ``AutoConfig`` and ``AutoModelForCausalLM`` know the palu model types. Harmless to repeat."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from palu_vllm.huggingface.modeling import MODELS

    for model in MODELS:
        AutoConfig.register(model.config_class.model_type, model.config_class, exist_ok=True)
        AutoModelForCausalLM.register(model.config_class, model, exist_ok=True)
