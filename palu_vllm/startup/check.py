"""The check of a server before anything is loaded: its checkpoint, then every refusal."""

from pathlib import Path

from vllm.config import VllmConfig
from vllm.logger import init_logger

from palu_vllm.format.checkpoint import check_shapes, expected_tensors
from palu_vllm.format.config import rope_type
from palu_vllm.kernels.choose import kernel_path
from palu_vllm.startup.codec.check import check_codec
from palu_vllm.startup.connectors import separate_files
from palu_vllm.startup.notices import notices
from palu_vllm.startup.refusals import REFUSALS
from palu_vllm.startup.served import ServedConfig, served_config, serves_palu

logger = init_logger("vllm.palu")


class StartError(RuntimeError):
    """This server cannot start. The message is one sentence that says what to do.

    Not a ValueError, which pydantic would bury in a report about VllmConfig.
    """


def check(vllm_config: VllmConfig) -> None:
    """Raises StartError for a palu model, or a model with a codec, that cannot be served as asked."""
    if vllm_config.model_config is None:
        return
    if not serves_palu(vllm_config):
        _check_model_as_it_is(vllm_config)
        return
    served = _checked(vllm_config)
    for refusal in REFUSALS:
        _raise_where(refusal(vllm_config, served))
    separate_files(vllm_config, {"palu_config": served.palu.model_dump()})
    for notice in notices(vllm_config, served):
        logger.warning_once(notice)


def _check_model_as_it_is(vllm_config: VllmConfig) -> None:
    try:
        _raise_where(check_codec(vllm_config))
    except ValueError as error:
        raise StartError(str(error)) from error


def _raise_where(sentence: str | None) -> None:
    if sentence is not None:
        raise StartError(sentence)


def _checked(vllm_config: VllmConfig) -> ServedConfig:
    """Parses the configuration, and reads the shapes in a local directory; a hub's are checked while they load."""
    model = vllm_config.model_config
    config = model.hf_config.to_dict()
    try:
        served = served_config(vllm_config)
        rope_type(config)
        expected_tensors(config)
        kernel_path(vllm_config.device_config.device_type)
        if Path(model.model).is_dir() and vllm_config.load_config.load_format != "dummy":
            check_shapes(Path(model.model))
    except ValueError as error:
        raise StartError(str(error)) from error
    return served
