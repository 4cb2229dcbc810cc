"""How the repository is built: sizes, parameters, import circles and words; ``python -m benchmarks.structure``."""
