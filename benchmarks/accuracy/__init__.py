"""The accuracy suite: one runner, one results format, always through the vLLM that serves (``docs/accuracy.md``).

``python -m benchmarks.accuracy run MODEL`` measures; ``python -m benchmarks.accuracy compare DENSE OUT ...`` reports.
"""
