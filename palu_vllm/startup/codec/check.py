"""The check of a model as it is: finds its codec, refuses what cannot work, and has the layers attend by it."""

from vllm.config import VllmConfig
from vllm.logger import init_logger

from palu_vllm.attention_backend.codec.attach import attaching
from palu_vllm.attention_backend.codec.served import CODEC, is_of_a_drafter, named_codec
from palu_vllm.startup.codec.asked import asked_settings
from palu_vllm.startup.codec.facts import CodecFacts
from palu_vllm.startup.codec.refusals import REFUSALS
from palu_vllm.startup.connectors import separate_files

logger = init_logger("vllm.palu")  # vLLM prints nothing of loggers that are not below its own


def check_codec(config: VllmConfig) -> str | None:
    """The sentence that ends the start of a server, None where it may go on. Harmless to repeat.

    The configuration then names the codec for every process, and no backend: layers that the codec does not list
    have vLLM's own. Raises ValueError, one sentence, for settings or a codec that make no sense.
    """
    settings = None if is_of_a_drafter(config) else asked_settings(config)
    if settings is None:
        return None
    additional = config.additional_config if isinstance(config.additional_config, dict) else {}
    config.additional_config = {**additional, "palu": attaching(settings)}
    codec = named_codec(settings[CODEC])
    for refusal in REFUSALS:
        if sentence := refusal(config, codec):
            return sentence
    facts = CodecFacts.of(config)
    separate_files(config, {"codec": facts.digest})
    logger.info_once(facts.line())
    config.attention_config.backend, config.attention_config.backend_per_kind = None, {}
    return None
