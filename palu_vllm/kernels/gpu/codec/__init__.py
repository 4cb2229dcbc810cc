"""Attention over codec slots on a GPU, in Triton: tried in its interpreter, untested on a GPU."""
