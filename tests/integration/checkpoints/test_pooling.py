"""``--runner pooling``: embeddings over latents are transformers' last hidden state of the same checkpoint."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.integration.checkpoints.test_half_rank import RANKS
from tests.support.serving import attention_used, engine, prompts

pytestmark = pytest.mark.serving


def test_embeddings_are_those_of_transformers(palu):
    model, requests = palu("llama", **RANKS), prompts(6, 130, 45)
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).model
    with engine(model, runner="pooling", convert="embed", max_num_batched_tokens=48) as llm:
        outputs = llm.embed([{"prompt_token_ids": ids} for ids in requests], use_tqdm=False)
        assert attention_used(llm) == {("PALU", "TorchAttention")}
    for output, ids in zip(outputs, requests, strict=True):
        with torch.no_grad():
            last = reference(torch.tensor([ids])).last_hidden_state[0, -1]
        torch.testing.assert_close(torch.tensor(output.outputs.embedding), last / last.norm(), atol=1e-5, rtol=0)
