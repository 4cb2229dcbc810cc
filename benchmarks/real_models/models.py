"""A GGUF file as a transformers directory in float32: weights dequantized, tokenizer and configuration read from it."""

import tempfile
from pathlib import Path

from benchmarks.real_models.sources import Source


def convert(source: Source, cache: Path, out: Path) -> None:
    """Writes the directory ``out``."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory(prefix="palu-gguf-") as scratch:
        (Path(scratch) / "model.gguf").write_bytes(source.read(cache))
        options = {"gguf_file": "model.gguf"}
        tokenizer = AutoTokenizer.from_pretrained(scratch, **options)
        read = AutoModelForCausalLM.from_pretrained(scratch, dtype=torch.float32, **options)
    # a plain configuration: the one that was read says that the weights are still quantized
    dropped = ("quantization_config", "_name_or_path")
    settings = {key: value for key, value in read.config.to_dict().items() if key not in dropped}
    model = type(read)(type(read.config)(**settings))
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.save_pretrained(out)
    _beginning_with_bos(tokenizer, settings.get("model_type", "")).save_pretrained(out)


def _beginning_with_bos(tokenizer, model_type: str):
    """Gemma answers noise to text that does not begin with its BOS, and the tokenizer out of its GGUF adds none."""
    if not model_type.startswith("gemma") or tokenizer.encode("a")[0] == tokenizer.bos_token_id:
        return tokenizer
    from tokenizers.processors import TemplateProcessing

    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    return tokenizer
