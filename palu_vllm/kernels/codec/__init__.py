"""Attention over slots of a KV codec."""
