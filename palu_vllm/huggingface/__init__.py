"""Compressed checkpoints in transformers: ``AutoModelForCausalLM.from_pretrained(OUT)``, with latents in its cache.

``configuration`` says what transformers reads from ``config.json``, ``attention`` computes one layer, ``modeling``
puts it into transformers' own Llama, Mistral and Qwen2. Importing this package imports none of them.
"""


def register_configs() -> None:
    """Makes ``AutoConfig`` know the palu model types. Harmless to repeat."""
    from transformers.models.auto.configuration_auto import AutoConfig

    from palu_vllm.huggingface.configuration import CONFIGS

    for config in CONFIGS:
        AutoConfig.register(config.model_type, config, exist_ok=True)


def register_auto_classes() -> None:
    """Makes ``AutoConfig`` and ``AutoModelForCausalLM`` know the palu model types. Harmless to repeat."""
    from transformers.models.auto.modeling_auto import AutoModelForCausalLM

    from palu_vllm.huggingface.modeling import MODELS

    register_configs()
    for model in MODELS:
        AutoModelForCausalLM.register(model.config_class, model, exist_ok=True)
