"""Which codec a server of a model as it is has: the one that its settings name, or one in the model's directory."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from vllm.config import VllmConfig

from palu_vllm.attention_backend.codec.drift import SETTING as DRIFT
from palu_vllm.attention_backend.codec.drift import DriftOptions
from palu_vllm.attention_backend.codec.served import CODEC, DIGEST, IGNORE, codec_directory
from palu_vllm.attention_backend.graphs import CUDA_GRAPHS
from palu_vllm.attention_backend.settings import expect_true, palu_settings
from palu_vllm.format.checkpoint import CheckpointError
from palu_vllm.format.codec.file import JSON
from palu_vllm.registry import BACKEND
from palu_vllm.startup.refusals import chosen_backends


def _expect_name(value: Any) -> None:
    if not isinstance(value, str):
        raise ValueError(f"--additional-config has {CODEC}={value!r} for palu; expected a directory or a hub id.")


def _expect_ignore(value: Any) -> None:
    if value != IGNORE:
        raise ValueError(f"--additional-config has {DIGEST}={value!r} for palu; expected {IGNORE}.")


# what raises ValueError, one sentence, for a value that a setting cannot have
SETTINGS: Mapping[str, Callable[[Any], object]] = {
    CODEC: _expect_name, DIGEST: _expect_ignore, DRIFT: DriftOptions.of, CUDA_GRAPHS: partial(expect_true, CUDA_GRAPHS),
}  # fmt: skip


def asked_settings(config: VllmConfig) -> Mapping[str, Any] | None:
    """The palu settings with the codec that is served, None where nobody asks for one.

    Raises ValueError, one sentence, for settings that are unknown, and where there is no codec.
    """
    settings = palu_settings(config)
    wanted = BACKEND in chosen_backends(config) or (isinstance(settings, Mapping) and CODEC in settings)
    if not wanted:
        return None
    checked = _checked(settings)
    return checked if CODEC in checked else {**checked, CODEC: _codec_of_the_model(config)}


def _checked(settings: Any) -> Mapping[str, Any]:
    unknown = set(settings) - set(SETTINGS) if isinstance(settings, Mapping) else {settings}
    if unknown:
        raise ValueError(
            f"--additional-config has palu settings {unknown}; expected {', '.join(SETTINGS)} for a model as it is."
        )
    for name, value in settings.items():
        SETTINGS[name](value)
    return settings


def _codec_of_the_model(config: VllmConfig) -> str:
    """The directory of the model, where a codec lies in it. Raises ValueError where none does."""
    model = config.model_config
    try:
        directory: Path | None = codec_directory(model.model, model.revision)
    except CheckpointError:
        directory = None
    if directory is None or not (directory / JSON).is_file():
        raise ValueError(
            f"{model.model} is neither a palu checkpoint nor has a codec, so --attention-backend palu cannot serve it; "
            f'make one with `palu-calibrate {model.model} OUT` and add --additional-config \'{{"palu": {{"codec": '
            '"OUT"}}\', or leave the flag out.'
        )
    return str(directory)
