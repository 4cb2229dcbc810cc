"""What a codec's directory says of it: report, card and plot; and the estimate of ``--dry-run``."""

import time
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData

from offline_compress.calibration.samples import CalibrationSamples
from offline_compress.codec.build import SolvedLayer
from offline_compress.codec.options import CalibrateOptions
from offline_compress.model.tensor_file import stored_tensors
from offline_compress.run.memory import peak_memory_bytes
from offline_compress.run.provenance import program_facts
from palu_vllm.format.codec.layer_codec import LayerCodec
from palu_vllm.format.latent_format import CodedFormat

PLOT = "codec_report.png"
FLOAT32 = 4
PASSES = 3.0  # forward passes that a sample's gradient costs, the forward pass among them
BODY = """# KV codec of {model}, {compression:.2f} times fewer bytes

Written by palu-calibrate. A server stores keys after RoPE and values in {bytes_per_token} bytes per token in the place
of {dense_bytes_per_token}; the model's weights stay as they are.

| | |
|---|---|
| KL from the dense model on held-out samples | {kl:.4f} (predicted {predicted_kl:.4f}) |
| calibration | {calibration} |
| positions | 0 to {context} |

```
vllm serve {model} --attention-backend palu --additional-config '{{"palu": {{"codec": "THIS_DIRECTORY"}}}}'
```

Bits of every layer, times and provenance are in `codec_report.json`.
"""


def codec_report(
    options: CalibrateOptions,
    samples: CalibrationSamples,
    solved: dict[int, SolvedLayer],
    codec: dict[int, LayerCodec],
    ratios: dict[int, float],
    losses: dict[str, float],
    seconds: float,
) -> dict[str, Any]:
    """What ``codec_report.json`` says; ``ratios`` are those of ``probes.loss_ratios``, by layer."""
    dense = sum(layer.dense_bytes for layer in solved.values())
    coded = sum(layer.bytes_per_token for layer in codec.values())
    slots = list(dict.fromkeys(layer.slot for layer in codec.values()))
    return {
        "model": options.model,
        "dense_bytes_per_token": dense,
        "bytes_per_token": coded,
        "compression": dense / coded,
        **losses,
        "seconds": round(seconds, 1),
        "peak_memory_bytes": peak_memory_bytes(),
        "context": options.context,
        "formats": [{"key": _tiers(slot.key), "value": _tiers(slot.value), "bytes": slot.bytes} for slot in slots],
        "layers": {str(number): slots.index(layer.slot) for number, layer in codec.items()},
        "loss_over_predicted": {str(number): round(ratio, 3) for number, ratio in ratios.items()},
        "bits_k": [layer.key.form.mean_bits for layer in codec.values()],
        "bits_v": [layer.value.form.mean_bits for layer in codec.values()],
        "group_size": {str(number): layer.num_kv_heads // layer.num_groups for number, layer in codec.items()},
        "calibration": samples.label,
        "provenance": program_facts() | {"calibration_sha256": samples.digest},
    }


def _tiers(form: CodedFormat) -> list[list[int]]:
    return [[tier.size, tier.bits] for tier in form.tiers]


def write_card(report: dict[str, Any], directory: Path) -> None:
    """Writes ``README.md``."""
    facts = ModelCardData(base_model=report["model"], library_name="vllm", tags=["palu", "kv-cache-compression"])
    ModelCard(f"---\n{facts}\n---\n{BODY.format(**report)}").save(directory / "README.md")


def write_codec_plot(report: dict[str, Any], directory: Path) -> None:
    """Writes ``codec_report.png``, bits by layer; does nothing without matplotlib, which is no dependency."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    layers = [int(number) for number in report["layers"]]
    axis.plot(layers, report["bits_k"], marker="o", label="keys")
    axis.plot(layers, report["bits_v"], marker="s", label="values")
    axis.set(xlabel="layer", ylabel="bits per number", title=f"{report['compression']:.2f}x, KL {report['kl']:.4f}")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(directory / PLOT, dpi=120, metadata={"Software": None})


def estimate(directory: Path, config: Any, options: CalibrateOptions) -> dict[str, Any]:
    """Memory and time that a run would take, from the sizes of the weights and a short matrix product."""
    parameters = sum(
        tensor.num_bytes // tensor.dtype.itemsize
        for file in directory.glob("*.safetensors")
        for tensor in stored_tensors(file).values()
    )
    rows = options.samples * 5 // 4
    text = config.get_text_config()
    probes = text.num_hidden_layers + 1
    tokens = options.seqlen * (PASSES * rows + probes + 2 * options.held_out + 3)
    logits = options.seqlen * text.vocab_size * FLOAT32
    return {
        "model": options.model,
        "parameters": parameters,
        "samples": rows,
        "memory_bytes": FLOAT32 * parameters + 4 * logits,
        "seconds": round(2 * parameters * tokens / _operations_per_second()),
        "writes": str(options.out),
    }


def _operations_per_second(size: int = 1024) -> float:
    matrix = torch.randn(size, size)
    matrix @ matrix
    started = time.perf_counter()
    for _ in range(5):
        matrix @ matrix
    return 5 * 2 * size**3 / (time.perf_counter() - started)
