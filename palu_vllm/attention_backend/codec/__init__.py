"""A KV codec on the attention layers of vLLM's own models."""
