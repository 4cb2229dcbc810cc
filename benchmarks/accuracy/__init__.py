"""The accuracy suite: one runner, one results format, always through the vLLM that serves (``docs/guide/accuracy.md``).

``python -m benchmarks.accuracy run MODEL`` measures; ``python -m benchmarks.accuracy compare DENSE OUT ...`` reports.
"""
