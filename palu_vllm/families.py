"""The families of models that can be compressed. Imports nothing, because the start of every interpreter reads it.

A family whose network is Llama's, with or without biases and norms of queries and keys, is one line here: the classes
for transformers and vLLM are made of it.
"""

FAMILIES = {  # model type in transformers: how its classes begin, and the model type whose network computes it
    "llama": ("Llama", "llama"),
    "mistral": ("Mistral", "mistral"),
    "qwen2": ("Qwen2", "qwen2"),
    "qwen3": ("Qwen3", "qwen3"),
    "phi3": ("Phi3", "mistral"),  # its joined matrices taken apart
}
CONFIG, MODEL, CAUSAL_LM = "Config", "Model", "ForCausalLM"


def palu_type(family: str) -> str:
    """The model type of the compressed form."""
    return f"palu_{family}"


def palu_class(family: str, suffix: str) -> str:
    """The name of a class of the compressed form, ``CONFIG``, ``MODEL`` or ``CAUSAL_LM``, for transformers and vLLM."""
    return f"Palu{FAMILIES[family][0]}{suffix}"
