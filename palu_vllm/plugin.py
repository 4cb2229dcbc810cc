"""What ``palu_vllm.register`` does in every process of vLLM.

vLLM internals used: the call of ``VllmConfig.try_verify_and_update_config`` (private, see ``_install_check``).
"""

import functools
from typing import TYPE_CHECKING

from palu_vllm.huggingface import register as transformers_hook
from palu_vllm.registry import is_supported, palu_backend, register_models

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def register_all() -> None:
    """Registers configurations, models, the backend and the check at start. Harmless to repeat."""
    import vllm

    transformers_hook.install()
    register_models()
    if is_supported(vllm.__version__):
        palu_backend()
        _install_check()


@functools.cache  # once per process
def _install_check() -> None:
    """Runs ``startup.check`` while vLLM verifies its configuration, in the process that the user started.

    vLLM offers hooks per architecture only, and on CPU it replaces a chosen backend silently, so a dense model
    with ``--attention-backend palu`` can be refused nowhere else. Until platforms validate the chosen backend.
    """
    from vllm.config import VllmConfig

    original = VllmConfig.try_verify_and_update_config

    @functools.wraps(original)
    def verify(self: "VllmConfig") -> None:
        from palu_vllm.startup.check import check

        check(self)
        original(self)

    VllmConfig.try_verify_and_update_config = verify
