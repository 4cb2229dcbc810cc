"""Notices tell what is worth knowing when a server starts, and no reason not to."""

from collections.abc import Iterator
from pathlib import Path

from vllm.config import VllmConfig

from palu_vllm.format.tokenizer import unknown_tokens
from palu_vllm.startup.refusals import on_cpu
from palu_vllm.startup.served import ServedConfig


def notices(config: VllmConfig, served: ServedConfig) -> Iterator[str]:
    """One sentence each, for the log."""
    model = config.model_config
    stored = str(getattr(model.hf_config, "dtype", None)).removeprefix("torch.")
    if stored == "float32" != served.dtype:
        yield (
            f"the weights of the checkpoint are {stored} and are served in {served.dtype}; give --dtype {stored} to "
            "serve them as they are."
        )
    yield from unknown_tokens(Path(model.tokenizer or model.model), model.hf_config.vocab_size)
    if config.lora_config is not None and on_cpu(config):
        yield (
            "vLLM on a CPU applies an adapter to requests without one that share a batch with it "
            "(vLLM pull request 48421); give every request an adapter, or serve the plain model apart."
        )
