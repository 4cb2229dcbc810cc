"""A codec serves the weights that it was made of: at the start, and where a running server loads others.

vLLM internals used: ``Worker.reload_weights`` (wrapped, once a process), through which weights of the same shapes
replace those of a running model, whichever runner it has. Until vLLM asks a plugin about them. Weights that a trainer
sends to vLLM's weight transfer engine do not come this way.
"""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vllm.config import VllmConfig
from vllm.logger import init_logger

from palu_vllm.attention_backend.codec.served import DIGEST, IGNORE, served_codec
from palu_vllm.attention_backend.settings import palu_settings
from palu_vllm.format.checkpoint import CheckpointError
from palu_vllm.format.codec.digest import model_digest
from palu_vllm.format.codec.file import Codec

logger = init_logger("vllm.palu")  # vLLM prints nothing of loggers that are not below its own


def other_weights(
    config: VllmConfig, codec: Codec, directory_of: Callable[[VllmConfig], Path], name: str
) -> str | None:
    """One sentence where weights are not those of the codec; None where they are, or where the user knows better."""
    if palu_settings(config).get(DIGEST) == IGNORE:
        return None
    try:
        found = model_digest(directory_of(config))
    except (CheckpointError, OSError) as error:
        return f"whether the codec is that of {name} is not known ({error}); set {DIGEST} to {IGNORE} if it is."
    if found == codec.model.get("digest"):
        return None
    return (
        f"the codec was made of {codec.model.get('name', 'a model without a name')}, whose K and V projections are not "
        f"those of {name}; make one with `palu-calibrate {name} OUT`, or set {DIGEST} to {IGNORE} "
        "where the weights are a quantized copy."
    )


@functools.cache
def check_reloads() -> None:
    """In the process of a worker, before a model is built."""
    from vllm.v1.worker.gpu_worker import Worker  # heavy, and there already; a CPU's is one of them

    Worker.reload_weights = with_check(Worker.reload_weights)


def with_check(reload: Callable[..., None]) -> Callable[..., None]:
    """``reload_weights`` that raises ValueError, one sentence, for a directory of weights that are not the codec's.

    Weights from memory cannot be told apart, so they are warned of.
    """

    @functools.wraps(reload)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        given = inspect.signature(self.model_runner.reload_weights).bind(*args, **kwargs).arguments
        path, codec = given.get("weights_path"), served_codec(self.vllm_config)
        if codec is not None and given.get("weights_iterator") is not None:
            logger.warning("Weights from memory take the place of those that the codec was made of: watch its drift.")
        elif codec is not None and path is not None:
            sentence = other_weights(self.vllm_config, codec, lambda _: Path(path), path)
            if sentence is not None:
                raise ValueError(sentence)
        reload(self, *args, **kwargs)

    return checked
