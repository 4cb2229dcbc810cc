"""The KV codec: what is stored of keys after RoPE and of values, for models as they are."""
