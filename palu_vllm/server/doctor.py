"""``palu-doctor OUT``: is this machine able to serve this checkpoint, and does it serve the right tokens?

With ``--codec``: the same of a model as it is and its codec, see ``codec_doctor``.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path

from palu_vllm import registry
from palu_vllm.format.checkpoint import check_finite, check_shapes, checkpoint_shapes, read_config
from palu_vllm.format.config import DTYPE_BYTES, rope_type, served_dtype
from palu_vllm.huggingface.tokenizer_agreement import compare_tokenizers, tokenizer_of
from palu_vllm.kernels.choose import codec_path, kernel_path
from palu_vllm.server.agreement import require_equal_tokens
from palu_vllm.version import __version__

Announce = Callable[[str], None]


@dataclass(frozen=True)
class Finding:
    check: str
    ok: bool
    detail: str


def _vllm_version(directory: Path) -> str:
    import vllm

    registry.require_supported_vllm()
    return f"{vllm.__version__} (tested with {registry.TESTED_VLLM}.x)"


def _registered(directory: Path) -> str:
    """Registers as vLLM does, by the entry point."""
    group = "vllm.general_plugins"
    found = [point for point in entry_points(group=group) if point.value == "palu_vllm:register"]
    if not found:
        raise ValueError(f"the entry point of {group} is missing; install palu-vllm with pip")
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and "palu" not in allowed.split(","):
        raise ValueError(f"VLLM_PLUGINS={allowed} leaves palu out; add it or unset the variable")
    found[0].load()()
    return f"backend {registry.palu_backend().name}, {', '.join(sorted(registry.ARCHITECTURES))}"


def _device() -> str:
    from vllm.platforms import current_platform

    return current_platform.device_type


def _kernels(directory: Path) -> str:
    device = _device()
    return f"{kernel_path(device)} on {device}; over codec slots {codec_path(device)}"


def _configuration(directory: Path) -> str:
    config, palu, geometry = read_config(directory)
    ranks = f"rank_k {min(palu.rank_k)}-{max(palu.rank_k)}, rank_v {min(palu.rank_v)}-{max(palu.rank_v)}"
    return (
        f"{config['model_type']}, {geometry.num_layers} layers, {palu.group_sizes}, {ranks}, "
        f"{palu.value_path} values, rope {rope_type(config)}{', queries and keys normalised' * palu.qk_norm}"
        + (f", {palu.num_shared} layers read the latents of an earlier one" if palu.num_shared else "")
    )


def _shapes(directory: Path) -> str:
    check_shapes(directory)
    return f"{len(checkpoint_shapes(directory))} tensors, as the configuration promises"


def _values(directory: Path) -> str:
    check_finite(directory)
    return "all finite"


def _sizes(directory: Path) -> str:
    config, palu, geometry = read_config(directory)
    stored = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    dtype = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"config.json has dtype {dtype!r}; expected one of {', '.join(DTYPE_BYTES)}")
    served = served_dtype(dtype)
    latent, dense = palu.bytes_per_token(geometry, dtype), geometry.dense_bytes_per_token(dtype)
    return (
        f"{stored / 2**20:,.1f} MiB of weights; {latent:,} bytes of KV cache per token in {dtype} "
        f"instead of {dense:,} ({dense / latent:.2f}x the tokens)"
        + (f"; served in {served}, vLLM's default, {palu.bytes_per_token(geometry, served):,}" * (served != dtype))
    )


def _tokens(directory: Path) -> str:
    if read_config(directory)[0].get("quantization_config"):
        return "not compared, because vLLM and transformers round quantized layers differently"
    return require_equal_tokens(directory, _device())


CHECKS: dict[str, Callable[[Path], str]] = {
    "vLLM": _vllm_version,
    "plugin": _registered,
    "kernels": _kernels,
    "configuration": _configuration,
    "tensors": _shapes,
    "values": _values,
    "sizes": _sizes,
    "greedy tokens": _tokens,
}


def _same_tokenizer(base: Path, directory: Path) -> str:
    return compare_tokenizers(tokenizer_of(directory), tokenizer_of(base))


def examine(directory: Path, announce: Announce, base: Path | None = None) -> Iterator[Finding]:
    """Runs ``CHECKS`` in order; with ``base``, the dense model, the tokenizers of both are compared too."""
    return findings(CHECKS | ({"tokenizer": partial(_same_tokenizer, base)} if base else {}), directory, announce)


def examine_codec(model: Path, announce: Announce, codec: str, text: Path | None) -> Iterator[Finding]:
    """Whether a codec is that of a model as it is, and with ``text`` what it costs there."""
    from palu_vllm.server.codec_doctor import codec_checks  # heavy

    general = {"vLLM": _vllm_version, "plugin": _registered}
    return findings(general | codec_checks(codec, text), model, announce)


def findings(checks: dict[str, Callable[[Path], str]], directory: Path, announce: Announce) -> Iterator[Finding]:
    """Of checks in order, up to the first that fails, for the later ones rest on it."""
    for check, run in checks.items():
        announce(check)
        try:
            yield Finding(check, True, run(directory))
        except (ValueError, RuntimeError, OSError, ImportError) as error:
            yield Finding(check, False, f"{error}" or type(error).__name__)
            return


def command() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="palu-doctor", description=__doc__)
    parser.add_argument(
        "checkpoint", type=Path, metavar="OUT", help="a directory that palu-compress wrote; with --codec the model"
    )
    parser.add_argument(
        "--base", type=Path, metavar="MODEL", help="the dense model: compares tokens and chat templates with its own"
    )
    parser.add_argument("--codec", metavar="DIR", help="a codec of the model, by palu-calibrate: checks that instead")
    parser.add_argument("--text", type=Path, metavar="FILE", help="judges the codec on up to four rows of this text")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def refused(options: argparse.Namespace) -> str | None:
    """The sentence for paths and options that make no sense, None for others."""
    if options.text and not options.codec:
        return "--text judges a codec; give --codec DIR too."
    if options.base and options.codec:
        return "--base compares a compressed checkpoint with its model; leave it out where there is a --codec."
    if options.text and not options.text.is_file():
        return f"{options.text} is not a file; expected a text."
    if not (options.checkpoint / "config.json").is_file():
        expected = "the directory of a model" if options.codec else "a directory that palu-compress wrote"
        return f"{options.checkpoint} has no config.json; expected {expected}."
    return None


def _asked(options: argparse.Namespace, announce: Announce) -> Iterator[Finding]:
    if options.codec:
        return examine_codec(options.checkpoint, announce, options.codec, options.text)
    return examine(options.checkpoint, announce, options.base)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a table, or JSON; returns 0 if every check passed."""
    options = command().parse_args(arguments)
    if sentence := refused(options):
        print(f"palu-doctor: {sentence}", file=sys.stderr)
        return 1
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # stdout is for the table or the JSON
    found: list[Finding] = []
    for finding in _asked(options, partial(print, "checking", end=" ...\n", file=sys.stderr)):
        found.append(finding)
        if not options.json:
            print(f"{'ok' if finding.ok else 'FAILED':<8}{finding.check:<16}{finding.detail}", flush=True)
    passed = all(finding.ok for finding in found)
    if options.json:
        print(json.dumps({"ok": passed, "checks": [asdict(finding) for finding in found]}))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
