"""One vLLM engine per process, started by lm-eval's vLLM backend and used by every task."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.accuracy.tasks.tokens import Tokens
from benchmarks.perplexity import codec_options, row_loss, set_environment


class Engine:
    """vLLM with what the tasks need of it. ``lm`` is lm-eval's backend, ``llm`` the ``vllm.LLM`` inside."""

    def __init__(
        self, model: Path, max_length: int, dtype: str, kv_cache_dtype: str, codec: Path | None = None
    ) -> None:
        """Starts vLLM; imports it only here, because its environment is set first."""
        set_environment()
        from lm_eval.models.vllm_causallms import VLLM

        self.max_length = max_length
        self.lm = VLLM(
            pretrained=str(model),
            dtype=dtype,
            max_model_len=max_length,
            kv_cache_dtype=kv_cache_dtype,
            enforce_eager=True,
            max_num_batched_tokens=2048,
            max_num_seqs=8,
            enable_prefix_caching=False,
            **codec_options(codec),
        )
        self.llm = self.lm.model
        self.tokens = Tokens(self.llm.get_tokenizer())

    def generate(self, prompts: Sequence[Sequence[int]], max_tokens: int, stop: Sequence[str] = ()) -> list[str]:
        """The greedy continuation of each prompt, up to the first of ``stop``."""
        from vllm import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, stop=list(stop))
        outputs = self.llm.generate([{"prompt_token_ids": list(ids)} for ids in prompts], params, use_tqdm=False)
        return [output.outputs[0].text for output in outputs]

    def losses(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """Summed negative log-likelihood in nats of each row, from its second token on."""
        from vllm import SamplingParams

        scoring = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        outputs = self.llm.generate([{"prompt_token_ids": list(ids)} for ids in rows], scoring, use_tqdm=False)
        return [row_loss(output.prompt_logprobs, row) for output, row in zip(outputs, rows, strict=True)]

    def close(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()
