"""What a KV cache costs on a real model and real text, ours and the rivals that people use: ``make judge``."""
