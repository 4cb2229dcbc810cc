"""``palu-doctor MODEL --codec OUT``: does the codec belong to the model, what runs, and what does it cost on a text?"""

import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from palu_vllm.attention_backend.codec.served import CODEC, codec_directory, named_codec
from palu_vllm.kernels.choose import codec_path
from palu_vllm.startup.codec.facts import CodecFacts, files_digest, reported_losses, span

Check = Callable[[Path], str]


def codec_checks(codec: str, text: Path | None) -> dict[str, Check]:
    """Each takes the directory of the model; the later ones rest on the earlier ones."""
    checks: dict[str, Check] = {
        "kernels": _kernels,
        "codec": partial(_codec, codec),
        "model": partial(_model, codec),
        "judge": partial(_judge, codec, text) if text else _not_judged,
    }
    return checks


def _kernels(_model: Path) -> str:
    from vllm.platforms import current_platform

    device = current_platform.device_type
    return f"{codec_path(device)} over codec slots on {device}"


def _codec(name: str, _model: Path) -> str:
    found, directory = named_codec(name), codec_directory(name)
    forms = [(layer.key.form.mean_bits, layer.value.form.mean_bits) for layer in found.layers.values()]
    keys, values = (span(side) for side in zip(*forms, strict=True))
    kl = reported_losses(directory).get("kl")
    return (
        f"{files_digest(directory)}, {len(found.layers)} layers, {keys} bits in K and {values} in V, "
        f"made of {found.model.get('name', 'a model without a name')}"
        + ("" if kl is None else f", KL {kl:.4f} on held-out samples of its calibration")
    )


def _model(codec: str, model: Path) -> str:
    """By the check that a server makes at its start."""
    from vllm.engine.arg_utils import EngineArgs

    settings = {"palu": {CODEC: codec}}
    facts = CodecFacts.of(EngineArgs(str(model), additional_config=settings).create_engine_config())
    left = len(facts.layers_left_dense)
    return (
        f"the codec is its own; {facts.bytes_per_token:,} bytes of KV cache per token in place of "
        f"{facts.dense_bytes_per_token:,} in {facts.dtype} ({facts.compression_ratio:.2f}x)"
        + (f" in {len(facts.layers)} layers, {left} are left dense" if left else "")
    )


def _not_judged(_model: Path) -> str:
    return "not asked for; give --text FILE to judge the codec on text of yours"


def _judge(codec: str, text: Path, model: Path) -> str:
    """In transformers, float32, on the CPU. Raises ValueError where answers are no numbers."""
    from offline_compress.codec.text_judge import TextJudgeOptions, judge_text
    from offline_compress.run.progress import shown_on

    with shown_on(sys.stderr) as on_event:
        found = judge_text(model, text, named_codec(codec).layers, TextJudgeOptions(), on_event)
    if not math.isfinite(found.kl):
        raise ValueError(f"with the codec the model's answers on {text} are no numbers; make the codec again.")
    return (
        f"KL {found.kl:.4f}, {100 * found.same_top:.1f} % same top token, perplexity {found.dense_perplexity:.2f} "
        f"dense and {found.coded_perplexity:.2f} coded, over {found.tokens:,} tokens of {text.name}"
    )
